/* guided_test.c - the shipped model under a JSON schema through the whole engine: every answer is JSON that satisfies it, and a
 * batch of 32 gives the same tokens as each request alone. */
#include "test.h"

#include <jansson.h>
#include <stdlib.h>

#include "base/buffer.h"
#include "base/sys.h"
#include "moefuse_engine.h"
#include "text/guide.h"
#include "text/tokenizer.h"

#define MODEL MF_SOURCE_DIR "/models/word-problems"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { NUM_SEEDS = 8, BATCH = 8 };
#else
enum { NUM_SEEDS = 50, BATCH = 32 };
#endif

enum { MAX_TOKENS = 400 };

/* Every string is bounded, so that every answer ends. */
static const char schema[] =
    "{\"type\":\"object\",\"properties\":{\"answer\":{\"type\":\"integer\",\"minimum\":-5,\"maximum\":250},"
    "\"unit\":{\"enum\":[\"apples\",\"pizzas\",null]},\"steps\":{\"type\":\"array\",\"minItems\":1,\"maxItems\":3,\"items\":{\"type\":\"object\","
    "\"properties\":{\"op\":{\"type\":\"string\",\"maxLength\":6},\"ok\":{\"type\":\"boolean\"}},\"required\":[\"op\"]}},"
    "\"day\":{\"type\":\"string\",\"format\":\"date\"}},\"required\":[\"answer\",\"steps\",\"day\"]}";

typedef struct guided {
    mf_guide_state *state;
    int32_t num_releases;
    int32_t ids[MAX_TOKENS];
    int32_t num_ids;
    mf_finish_reason reason;
    uint64_t seed;
} guided;

static void fill(void *context, uint32_t *mask, int32_t vocab_size)
{
    mf_guide_state_fill(((guided *)context)->state, mask, vocab_size);
}

static void accept_token(void *context, int32_t token_id)
{
    mf_guide_state_accept(((guided *)context)->state, token_id);
}

static void release(void *context)
{
    guided *g = context;
    g->num_releases++;
    mf_guide_state_close(&g->state);
}

typedef struct setup {
    mf_tokenizer *tok;
    mf_engine *engine;
    mf_guide_vocab *vocab;
    mf_guide_program *program;
    mf_ids prompt;
} setup;

static void open_setup(setup *s, int32_t max_num_seqs)
{
    mf_error err = { 0 };
    static const char text[] = "Oscar makes 19 pizzas an hour for 9 hours. How many pizzas does he have?";
    memset(s, 0, sizeof *s);
    mf_engine_options o = MF_ENGINE_OPTIONS_INIT;
    o.model_dir = MODEL;
    o.num_threads = 2;
    o.max_num_seqs = max_num_seqs;
    CHECK_OK(mf_tokenizer_open(MODEL "/tokenizer.json", &s->tok, &err), err);
    o.num_sampled_ids = mf_tokenizer_vocab_size(s->tok);
    CHECK_OK(mf_engine_open(&o, &s->engine, &err), err);
    CHECK_OK(mf_guide_vocab_open(s->tok, mf_engine_eos_token_ids(s->engine), mf_engine_num_eos_token_ids(s->engine), &s->vocab,
                                 &err), err);
    CHECK_OK(mf_guide_compile_json_schema(s->vocab, schema, sizeof schema - 1, NULL, &s->program, &err), err);
    CHECK_OK(mf_tokenizer_encode(s->tok, text, sizeof text - 1, 0, &s->prompt, &err), err);
}

static void close_setup(setup *s)
{
    mf_ids_close(&s->prompt);
    mf_engine_close(&s->engine);
    mf_guide_program_close(&s->program);
    mf_guide_vocab_close(&s->vocab);
    mf_tokenizer_close(&s->tok);
}

static void submit(setup *s, guided *g, uint64_t seed)
{
    mf_error err = { 0 };
    uint64_t id;
    *g = (guided){ .seed = seed };
    CHECK_OK(mf_guide_state_open(s->program, &g->state, &err), err);
    mf_request request = MF_REQUEST_INIT;
    request.prompt_token_ids = s->prompt.data;
    request.num_prompt_tokens = (int32_t)s->prompt.size;
    request.sampling.max_tokens = MAX_TOKENS;
    request.sampling.temperature = seed == 0 ? 0.0 : 1.5;
    request.sampling.has_seed = 1;
    request.sampling.seed = (int64_t)seed;
    request.user_data = g;
    request.guide = (mf_guide){ g, fill, accept_token, release };
    CHECK_OK(mf_engine_submit(s->engine, &request, &id, &err), err);
}

static void run(setup *s)
{
    mf_error err = { 0 };
    int32_t capacity = mf_engine_max_events(s->engine);
    mf_event *events = mf_alloc_array((size_t)capacity, sizeof *events);
    while (mf_engine_has_work(s->engine)) {
        int32_t n;
        CHECK_OK(mf_engine_step(s->engine, events, capacity, &n, &err), err);
        for (int32_t i = 0; i < n; i++) {
            guided *g = events[i].user_data;
            if (events[i].type == MF_EVENT_TOKEN) {
                g->ids[g->num_ids++] = events[i].token_id;
            } else if (events[i].type == MF_EVENT_FINISHED) {
                g->reason = events[i].finish_reason;
            }
        }
    }
    mf_free(events);
}

static bool is_one_of(const char *text, const char *const *names)
{
    while (*names && strcmp(*names, text) != 0) {
        names++;
    }
    return *names != NULL;
}

/* The schema by hand: a check of its own, not of the guide. */
static void check_answer(const setup *s, const guided *g)
{
    static const char *const keys[] = { "answer", "unit", "steps", "day", NULL };
    mf_error err = { 0 };
    mf_buffer text = { 0 };
    CHECK_EQ(g->num_releases, 1);
    CHECK_OK(mf_tokenizer_decode(s->tok, g->ids, (size_t)g->num_ids, true, &text, &err), err);
    if (g->reason != MF_FINISH_STOP) {
        fail_msg("seed %llu ended by %s: %s", (unsigned long long)g->seed, mf_finish_reason_name(g->reason), mf_buffer_text(&text));
    }
    json_error_t problem;
    json_t *root = json_loads(mf_buffer_text(&text), JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &problem);
    if (!root) {
        fail_msg("seed %llu: %s: %s", (unsigned long long)g->seed, problem.text, mf_buffer_text(&text));
    }
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value)
    {
        CHECK(is_one_of(key, keys));
    }
    const json_t *answer = json_object_get(root, "answer"), *unit = json_object_get(root, "unit");
    const json_t *steps = json_object_get(root, "steps"), *day = json_object_get(root, "day");
    CHECK(json_is_integer(answer) && json_integer_value(answer) >= -5 && json_integer_value(answer) <= 250);
    CHECK(!unit || json_is_null(unit) || is_one_of(json_string_value(unit), (const char *const[]){ "apples", "pizzas", NULL }));
    CHECK(json_is_array(steps) && json_array_size(steps) >= 1 && json_array_size(steps) <= 3);
    for (size_t i = 0; i < json_array_size(steps); i++) {
        const json_t *op = json_object_get(json_array_get(steps, i), "op"), *ok = json_object_get(json_array_get(steps, i), "ok");
        CHECK(json_is_string(op) && json_string_length(op) <= 6 * 4);
        CHECK(!ok || json_is_boolean(ok));
    }
    CHECK(json_is_string(day) && json_string_length(day) == 10);
    json_decref(root);
    mf_buffer_close(&text);
}

TEST(answers_under_a_schema_satisfy_it_and_do_not_depend_on_neighbours)
{
    static guided alone[NUM_SEEDS], together[BATCH];
    setup s;
    open_setup(&s, 1);
    for (int32_t i = 0; i < NUM_SEEDS; i++) { /* seed 0 is greedy */
        submit(&s, &alone[i], (uint64_t)i);
    }
    run(&s);
    for (int32_t i = 0; i < NUM_SEEDS; i++) {
        check_answer(&s, &alone[i]);
    }
    close_setup(&s);
    open_setup(&s, BATCH);
    for (int32_t i = 0; i < BATCH; i++) {
        submit(&s, &together[i], (uint64_t)i);
    }
    run(&s);
    for (int32_t i = 0; i < BATCH; i++) {
        check_answer(&s, &together[i]);
        CHECK_EQ(together[i].num_ids, alone[i].num_ids);
        CHECK_MEM(together[i].ids, alone[i].ids, (size_t)alone[i].num_ids * sizeof(int32_t));
    }
    close_setup(&s);
}
