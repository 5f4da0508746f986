/* eval_items.c - see eval_items.h. */
#include "cli/eval_items.h"

#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "cli/eval_answer.h"
#include "cli/jsonl.h"

static const char default_format[] = "Question: {question}\nAnswer:", chat_format[] = "{question}";
static const char target_delimiter[] = " ", shot_delimiter[] = "\n\n"; /* lm-eval's defaults */

/* ---- reading ---- */

static mf_status entry_error(const char *file, size_t number, const char *expected, const json_t *got, mf_error *err)
{
    return mf_fail(err, MF_ERR_FORMAT, "%.400s: entry %zu: expected %s; got %s", file, number, expected,
                   mf_json_type_name(got));
}

static mf_status read_choice(const json_t *entry, const char *file, size_t number, mf_eval_item *item, mf_error *err)
{
    const json_t *choices = json_object_get(entry, "choices"), *answer = json_object_get(entry, "answer");
    size_t n = json_array_size(choices);
    if (n < 1 || n > MF_EVAL_MAX_CHOICES) {
        return entry_error(file, number, "\"choices\" with 1 to 64 strings", choices, err);
    }
    for (size_t i = 0; i < n; i++) {
        if (!json_is_string(json_array_get(choices, i)) || json_string_length(json_array_get(choices, i)) == 0) {
            return entry_error(file, number, "a string that is not empty as every choice", json_array_get(choices, i),
                               err);
        }
    }
    json_int_t index = -1;
    const char *letter = json_string_value(answer);
    if (json_is_integer(answer)) {
        index = json_integer_value(answer);
    } else if (letter && letter[0] && !letter[1]) {
        index = letter[0] >= 'a' ? letter[0] - 'a' : letter[0] >= 'A' ? letter[0] - 'A' : letter[0] - '0';
    }
    if (index < 0 || index >= (json_int_t)n) {
        return entry_error(file, number, "\"answer\" as an index of choices or its letter", answer, err);
    }
    item->num_choices = (int32_t)n;
    item->gold = (int32_t)index;
    return MF_OK;
}

static mf_status read_item(mf_eval_task task, const json_t *entry, const char *file, size_t number, mf_eval_item *item,
                           mf_error *err)
{
    const json_t *question = json_object_get(entry, "question"), *answer = json_object_get(entry, "answer");
    if (!json_is_string(question)) {
        return entry_error(file, number, "a string \"question\"", question, err);
    }
    *item = (mf_eval_item){ .entry = entry, .question = json_string_value(question), .gold = -1 };
    if (task == MF_EVAL_CHOICE) {
        return read_choice(entry, file, number, item, err);
    }
    if (!json_is_string(answer) || !strstr(json_string_value(answer), "####")) {
        return entry_error(file, number, "a string \"answer\" with ####", answer, err);
    }
    item->answer = json_string_value(answer);
    return MF_OK;
}

static mf_status out_of_memory(mf_error *err)
{
    return mf_fail(err, MF_ERR_NOMEM, "eval: out of memory");
}

mf_status mf_eval_set_load(const mf_eval_options *o, mf_eval_set *out, mf_error *err)
{
    *out = (mf_eval_set){ .task = o->task };
    mf_status status = mf_jsonl_load(o->data, &out->entries, err);
    size_t count = json_array_size(out->entries);
    if (status == MF_OK && (count == 0 || count > 10000000)) {
        status = mf_fail(err, MF_ERR_FORMAT, "%.400s: expected questions; got %zu entries", o->data, count);
    }
    if (status == MF_OK && !o->task_given) {
        out->task = json_object_get(json_array_get(out->entries, 0), "choices") ? MF_EVAL_CHOICE : MF_EVAL_GENERATE;
    }
    count = o->limit > 0 && (size_t)o->limit < count ? (size_t)o->limit : count;
    if (status == MF_OK) {
        out->items = mf_alloc_array(count, sizeof *out->items);
        status = out->items ? MF_OK : out_of_memory(err);
    }
    size_t num_units = 0;
    for (size_t i = 0; status == MF_OK && i < count; i++) {
        mf_eval_item *item = &out->items[out->num_items];
        status = read_item(out->task, json_array_get(out->entries, i), o->data, i + 1, item, err);
        item->first_unit = (int32_t)num_units;
        num_units += out->task == MF_EVAL_CHOICE ? (size_t)item->num_choices : 1;
        out->num_items++;
    }
    if (status == MF_OK) {
        out->units = mf_alloc_array(num_units, sizeof *out->units);
        status = out->units ? MF_OK : out_of_memory(err);
    }
    for (int32_t i = 0; status == MF_OK && i < out->num_items; i++) {
        for (int32_t c = 0; c < (out->task == MF_EVAL_CHOICE ? out->items[i].num_choices : 1); c++) {
            out->units[out->num_units++] = (mf_eval_unit){ .item = i, .choice = c };
        }
    }
    if (status == MF_OK && o->num_shots > 0) {
        status = o->fewshot ? mf_jsonl_load(o->fewshot, &out->shots, err)
                            : mf_fail(err, MF_ERR_INVALID, "--num-shots: expected --fewshot FILE; got none");
        if (status == MF_OK && json_array_size(out->shots) < (size_t)o->num_shots) {
            status = mf_fail(err, MF_ERR_INVALID, "--num-shots: %.400s has %zu; got %lld", o->fewshot,
                             json_array_size(out->shots), (long long)o->num_shots);
        }
    }
    if (status != MF_OK) {
        mf_eval_set_close(out);
    }
    return status;
}

/* ---- prompts ---- */

static mf_status append_formatted(mf_buffer *out, const char *format, const char *question)
{
    static const char mark[] = "{question}";
    for (const char *p = format; *p;) {
        const char *next = strstr(p, mark);
        MF_TRY(mf_buffer_append(out, p, next ? (size_t)(next - p) : strlen(p)));
        if (!next) {
            break;
        }
        MF_TRY(mf_buffer_append_text(out, question));
        p = next + sizeof mark - 1;
    }
    return MF_OK;
}

static const char *target_of(mf_eval_task task, const mf_eval_item *item)
{
    return task == MF_EVAL_CHOICE
               ? json_string_value(json_array_get(json_object_get(item->entry, "choices"), (size_t)item->gold))
               : item->answer;
}

static mf_status make_messages(const mf_eval_options *o, const mf_eval_set *set, const mf_eval_item *item, json_t **out,
                               mf_error *err)
{
    const char *format = o->prompt_format ? o->prompt_format : chat_format;
    *out = json_array();
    mf_buffer text = { 0 };
    mf_status status = *out ? MF_OK : out_of_memory(err);
    for (int64_t i = 0; status == MF_OK && i <= o->num_shots; i++) {
        mf_eval_item shot = *item;
        if (i < o->num_shots) {
            status = read_item(set->task, json_array_get(set->shots, (size_t)i), o->fewshot, (size_t)i + 1, &shot, err);
        }
        mf_buffer_clear(&text);
        if (status == MF_OK && append_formatted(&text, format, shot.question) != MF_OK) {
            status = out_of_memory(err);
        }
        if (status == MF_OK) {
            json_array_append_new(*out, json_pack("{s:s, s:s}", "role", "user", "content", mf_buffer_text(&text)));
        }
        if (status == MF_OK && i < o->num_shots) {
            json_array_append_new(*out,
                                  json_pack("{s:s, s:s}", "role", "assistant", "content", target_of(set->task, &shot)));
        }
    }
    mf_buffer_close(&text);
    return status;
}

static mf_status make_text(const mf_eval_options *o, const mf_eval_set *set, const mf_eval_item *item, mf_buffer *out,
                           mf_error *err)
{
    const char *format = o->prompt_format ? o->prompt_format : default_format;
    mf_status status = MF_OK;
    for (int64_t i = 0; status == MF_OK && i < o->num_shots; i++) {
        mf_eval_item shot;
        MF_TRY(read_item(set->task, json_array_get(set->shots, (size_t)i), o->fewshot, (size_t)i + 1, &shot, err));
        status = append_formatted(out, format, shot.question);
        const char *const rest[] = { target_delimiter, target_of(set->task, &shot), shot_delimiter };
        for (size_t r = 0; r < 3 && status == MF_OK; r++) {
            status = mf_buffer_append_text(out, rest[r]);
        }
    }
    status = status == MF_OK ? append_formatted(out, format, item->question) : status;
    return status == MF_OK ? MF_OK : out_of_memory(err);
}

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* As lm-eval's _encode_pair: blanks that end the context go to the continuation; both are encoded together, and what
 * the context alone encodes to is cut off. */
static mf_status encode_choice(const mf_tokenizer *tok, unsigned flags, mf_buffer *text, const char *choice,
                               mf_eval_unit *unit, mf_error *err)
{
    size_t context = text->size;
    while (context > 0 && is_blank(text->data[context - 1])) {
        context--;
    }
    mf_ids alone = { 0 };
    MF_TRY(mf_tokenizer_encode(tok, mf_buffer_text(text), context, flags, &alone, err));
    unit->context_len = (int32_t)alone.size;
    mf_ids_close(&alone);
    if (mf_buffer_append_text(text, target_delimiter) != MF_OK || mf_buffer_append_text(text, choice) != MF_OK) {
        return out_of_memory(err);
    }
    MF_TRY(mf_tokenizer_encode(tok, mf_buffer_text(text), text->size, flags, &unit->ids, err));
    if (unit->context_len < 1 || (int32_t)unit->ids.size <= unit->context_len) {
        return mf_fail(err, MF_ERR_INVALID, "eval: item %d, choice %d: context or choice has no token of its own",
                       unit->item + 1, unit->choice + 1);
    }
    return MF_OK;
}

static mf_status make_prompt(const mf_eval_options *o, const mf_prompt *prompt, const mf_eval_set *set,
                             mf_eval_unit *unit, mf_error *err)
{
    const mf_eval_item *item = &set->items[unit->item];
    const unsigned flags = o->add_special_tokens ? MF_ENCODE_ADD_SPECIAL : 0;
    if (o->chat && set->task == MF_EVAL_GENERATE) {
        json_t *messages = NULL;
        mf_status status = make_messages(o, set, item, &messages, err);
        if (status == MF_OK && prompt) {
            status = mf_prompt_encode_chat(prompt, messages, &unit->ids, err);
            mf_buffer text = { 0 };
            if (status == MF_OK) {
                status = mf_tokenizer_decode(prompt->tokenizer, unit->ids.data, unit->ids.size, false, &text, err);
            }
            unit->text = mf_strndup(mf_buffer_text(&text), text.size);
            mf_buffer_close(&text);
            json_decref(messages);
            return status;
        }
        unit->messages = messages;
        return status;
    }
    mf_buffer text = { 0 };
    mf_status status = make_text(o, set, item, &text, err);
    if (status == MF_OK && set->task == MF_EVAL_CHOICE) {
        const json_t *choice = json_array_get(json_object_get(item->entry, "choices"), (size_t)unit->choice);
        status = encode_choice(prompt->tokenizer, flags, &text, json_string_value(choice), unit, err);
    } else if (status == MF_OK && prompt) {
        status = mf_tokenizer_encode(prompt->tokenizer, mf_buffer_text(&text), text.size, flags, &unit->ids, err);
    }
    if (status == MF_OK) {
        unit->text = mf_strndup(mf_buffer_text(&text), text.size);
        status = unit->text ? MF_OK : out_of_memory(err);
    }
    mf_buffer_close(&text);
    return status;
}

mf_status mf_eval_set_prompts(const mf_eval_options *o, const mf_prompt *prompt, mf_eval_set *set, mf_error *err)
{
    for (int32_t i = 0; i < set->num_units; i++) {
        MF_TRY(make_prompt(o, prompt, set, &set->units[i], err));
    }
    return MF_OK;
}

/* ---- results ---- */

mf_status mf_eval_unit_push(mf_eval_unit *unit, int32_t id, float logprob, mf_error *err)
{
    if (unit->num_out == unit->out_room) {
        int32_t room = unit->out_room ? unit->out_room * 2 : 64;
        int32_t *ids = mf_resize_array(unit->out_ids, (size_t)room, sizeof *ids);
        unit->out_ids = ids ? ids : unit->out_ids;
        float *logprobs = mf_resize_array(unit->logprobs, (size_t)room, sizeof *logprobs);
        unit->logprobs = logprobs ? logprobs : unit->logprobs;
        if (!ids || !logprobs) {
            return out_of_memory(err);
        }
        unit->out_room = room;
    }
    unit->out_ids[unit->num_out] = id;
    unit->logprobs[unit->num_out++] = logprob;
    return MF_OK;
}

static int32_t best_of(const mf_eval_set *set, const mf_eval_item *item, int measure)
{
    int32_t best = 0;
    double most = 0;
    for (int32_t c = 0; c < item->num_choices; c++) {
        const json_t *choice = json_array_get(json_object_get(item->entry, "choices"), (size_t)c);
        const char *text = json_string_value(choice);
        double bytes = (double)json_string_length(choice), characters = 0;
        for (const char *p = text; *p; p++) {
            characters += ((unsigned char)*p & 0xc0) != 0x80;
        }
        double value = set->units[item->first_unit + c].loglikelihood;
        value = measure == 1 ? value / characters : measure == 2 ? value / bytes : value;
        if (c == 0 || value > most) { /* of equals the first, as numpy.argmax */
            most = value;
            best = c;
        }
    }
    return best;
}

mf_status mf_eval_set_judge(mf_eval_set *set, mf_error *err)
{
    for (int32_t i = 0; i < set->num_items; i++) {
        mf_eval_item *item = &set->items[i];
        for (int m = 0; m < 3 && set->task == MF_EVAL_CHOICE; m++) {
            item->picked[m] = best_of(set, item, m);
            item->correct[m] = item->picked[m] == item->gold;
        }
        if (set->task == MF_EVAL_CHOICE) {
            continue;
        }
        const mf_buffer *text = &set->units[item->first_unit].output;
        mf_buffer answer = { 0 };
        mf_status status = MF_OK;
        for (int m = 0; m < 2 && status == MF_OK; m++) {
            mf_buffer_clear(&answer);
            status = m == 0 ? mf_answer_strict(mf_buffer_text(text), text->size, &answer)
                            : mf_answer_flexible(mf_buffer_text(text), text->size, &answer);
            if (status == MF_OK) {
                status = mf_answer_matches(mf_buffer_text(&answer), answer.size, item->answer, strlen(item->answer),
                                           &item->correct[m]);
            }
        }
        mf_buffer_close(&answer);
        if (status != MF_OK) {
            return out_of_memory(err);
        }
    }
    return MF_OK;
}

int32_t mf_eval_num_measures(const mf_eval_set *set)
{
    return set->task == MF_EVAL_CHOICE ? 3 : 2;
}

const char *mf_eval_measure_name(const mf_eval_set *set, int32_t measure)
{
    static const char *const names[2][3] = { { "strict", "flexible", "" }, { "acc", "acc_norm", "acc_bytes" } };
    return names[set->task == MF_EVAL_CHOICE][measure];
}

int32_t mf_eval_num_correct(const mf_eval_set *set, int32_t measure)
{
    int32_t n = 0;
    for (int32_t i = 0; i < set->num_items; i++) {
        n += set->items[i].correct[measure];
    }
    return n;
}

int32_t mf_eval_first_difference(const mf_eval_set *a, const mf_eval_set *b, int32_t *position, int32_t *num_differing)
{
    int32_t first = -1;
    *num_differing = 0;
    for (int32_t i = 0; i < a->num_units; i++) {
        const mf_eval_unit *x = &a->units[i], *y = &b->units[i];
        int32_t shorter = x->num_out < y->num_out ? x->num_out : y->num_out, at = 0;
        while (at < shorter && x->out_ids[at] == y->out_ids[at] &&
               memcmp(&x->logprobs[at], &y->logprobs[at], sizeof(float)) == 0) {
            at++;
        }
        if (at == shorter && x->num_out == y->num_out) {
            continue;
        }
        if (first < 0) {
            first = i;
            *position = at;
        }
        ++*num_differing;
    }
    return first;
}

static void forget_unit(mf_eval_unit *u)
{
    mf_buffer_close(&u->output);
    mf_free(u->out_ids);
    mf_free(u->logprobs);
    u->out_ids = NULL;
    u->logprobs = NULL;
    u->num_out = u->out_room = 0;
    u->loglikelihood = 0;
    u->num_tokens = 0;
    u->done = false;
}

void mf_eval_set_forget(mf_eval_set *set)
{
    for (int32_t i = 0; i < set->num_units; i++) {
        forget_unit(&set->units[i]);
    }
}

void mf_eval_set_close(mf_eval_set *set)
{
    for (int32_t i = 0; i < set->num_units; i++) {
        mf_eval_unit *u = &set->units[i];
        forget_unit(u);
        mf_free(u->text);
        json_decref(u->messages);
        mf_ids_close(&u->ids);
    }
    mf_free(set->units);
    mf_free(set->items);
    json_decref(set->entries);
    json_decref(set->shots);
    *set = (mf_eval_set){ 0 };
}
