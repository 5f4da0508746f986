/* states_test.c - states of linear layers as a batch sees them: a state goes on only where it is, begins anew at
 * position 0, and belongs to one sequence of a batch. */
#include "base/sys.h"
#include "golden_support.h"

enum { BLOCK = 4, MAX_BLOCKS = 24, NUM_STATES = 2 };

typedef struct fixture {
    golden g;
    mf_model *model;
    mf_kv_store *store;
    float *logits;
} fixture;

static void setup(fixture *f, const char *name, const char *device)
{
    mf_error err;
    golden_open(name, &f->g);
    mf_model_options options = golden_options(device);
    f->model = golden_model(&f->g, &options);
    f->store = NULL;
    CHECK_OK(mf_kv_store_open(f->model, 2 * MAX_BLOCKS, BLOCK, NUM_STATES, &f->store, &err), err);
    f->logits = golden_logits(&f->g, f->g.num_tokens);
}

static void teardown(fixture *f)
{
    mf_free(f->logits);
    mf_kv_store_close(&f->store);
    mf_model_close(&f->model);
    golden_close(&f->g);
}

/* Rows of sequences 0 and 1, each row's logits. */
static mf_status run(fixture *f, int32_t n, const int32_t *position, const int32_t *sequence, const int32_t *slots,
                     mf_error *err)
{
    int32_t token[128], rows[128], table[2 * MAX_BLOCKS];
    for (int32_t i = 0; i < n; i++) {
        token[i] = f->g.ids[position[i] % f->g.num_tokens];
        rows[i] = i;
    }
    for (int32_t i = 0; i < 2 * MAX_BLOCKS; i++) {
        table[i] = i;
    }
    mf_batch batch = { .num_tokens = n,
                       .token_ids = token,
                       .position = position,
                       .sequence = sequence,
                       .block_table = table,
                       .num_sequences = 2,
                       .max_blocks = MAX_BLOCKS,
                       .state_slot = slots,
                       .num_logit_rows = n,
                       .logit_rows = rows };
    return mf_model_forward(f->model, f->store, &batch, f->logits, NULL, NULL, err);
}

typedef struct step {
    int32_t n, position[4], sequence[4], slots[2];
    const char *message; /* NULL: it runs */
} step;

TEST(a_state_goes_on_only_where_it_is)
{
    static const step steps[] = {
        { 3, { 0, 1, 2 }, { 0, 0, 0 }, { 1, 0 }, NULL },
        { 1, { 4 }, { 0 }, { 1, 0 }, "batch row 0: position 4; the state of sequence 0 goes on at 3" },
        { 1, { 2 }, { 0 }, { 1, 0 }, "batch row 0: position 2; the state of sequence 0 goes on at 3" },
        { 1, { 3 }, { 0 }, { 0, 1 }, "batch row 0: position 3; sequence 0 has no state that goes on: expected 0" },
        { 2, { 3, 5 }, { 0, 0 }, { 1, 0 }, "batch row 1: position 5; the state of sequence 0 goes on at 4" },
        { 2, { 3, 0 }, { 0, 1 }, { 1, 1 }, "sequences 0 and 1 have one state 1" },
        { 1, { 3 }, { 0 }, { 2, 0 }, "sequence 0: state 2; expected 0..1" },
        { 1, { 3 }, { 0 }, { -1, 0 }, "sequence 0: state -1; expected 0..1" },
        { 4, { 3, 0, 4, 1 }, { 0, 1, 0, 1 }, { 1, 0 }, NULL }, /* what was refused changed nothing */
        { 2, { 5, 2 }, { 0, 1 }, { 1, 0 }, NULL },
        { 1, { 0 }, { 0 }, { 1, 0 }, NULL }, /* begins anew */
        { 1, { 1 }, { 0 }, { 1, 0 }, NULL },
    };
    fixture f;
    setup(&f, "qwen3_next", "cpu");
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        mf_error err = { 0 };
        mf_status status = run(&f, steps[i].n, steps[i].position, steps[i].sequence, steps[i].slots, &err);
        if (!steps[i].message) {
            CHECK_OK(status, err);
            continue;
        }
        CHECK_EQ(status, MF_ERR_INVALID);
        CHECK_STR(err.message, steps[i].message);
    }
    teardown(&f);
}

TEST(a_used_state_begins_anew_with_the_bits_of_a_fresh_one)
{
    static const char *const names[] = { "qwen3_next", "qwen3_next_odd" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        for (int d = 0; golden_devices[d]; d++) {
            if (!golden_device_usable(golden_devices[d])) {
                continue;
            }
            fixture f;
            setup(&f, names[i], golden_devices[d]);
            const int32_t n = f.g.num_tokens;
            const size_t bytes = (size_t)n * (size_t)f.g.vocab_size * sizeof(float);
            int32_t position[128], sequence[128] = { 0 };
            float *first = golden_logits(&f.g, n);
            mf_error err;
            for (int32_t t = 0; t < n; t++) {
                position[t] = t;
            }
            for (int32_t round = 0; round < 3; round++) { /* in one state, then in another */
                const int32_t slots[] = { round / 2, 1 - round / 2 };
                CHECK_OK(run(&f, n, position, sequence, slots, &err), err);
                if (round == 0) {
                    memcpy(first, f.logits, bytes);
                }
                CHECK_MEM(first, f.logits, bytes);
            }
            mf_free(first);
            teardown(&f);
        }
    }
}

/* Only layers of attention take room in the cache. */
TEST(linear_layers_have_no_keys_and_values)
{
    fixture f;
    setup(&f, "qwen3_next_odd", "ref"); /* 2 of 5 layers attend: 1 kv head of 12 */
    CHECK_EQ(mf_kv_store_block_bytes(f.model, 16), 2 * 16 * 2 * 12 * 4);
    CHECK_EQ(mf_kv_store_state_bytes(f.model), 3 * 4 * ((3 * 11 * 37 + 2 * (2 * 33 + 111) + 15) / 16 * 16));
    teardown(&f);
    setup(&f, "qwen3", "ref");
    CHECK_EQ(mf_kv_store_state_bytes(f.model), 0);
    teardown(&f);
}
