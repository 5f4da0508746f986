/* harmony.c - answers in the harmony form, as gpt-oss writes them: messages that begin with a header and name their
 * channel.
 *
 *     <|start|>assistant<|channel|>analysis<|message|>TEXT<|end|>                                    reasoning
 *     <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>   a call
 *     <|start|>assistant<|channel|>final<|message|>TEXT<|return|>                                    content
 *
 * The recipient may stand before the channel, and the prompt has written the first header's beginning.  A header, or
 * an end, leaves no text; all else does: what only looks like a header is text of the message that it stands in, and
 * text between messages is content.  A message to a function is a call in any channel, and its body the arguments,
 * whatever it is; ends that stand in strings of JSON arguments end nothing.  Commentary to nobody is content, as are
 * messages to other recipients that are no analysis.  Messages that become one text stand in lines of their own. */
#include <string.h>

#include "server/answer_parser_impl.h"

static const char start_marker[] = "<|start|>", channel_marker[] = "<|channel|>", message_marker[] = "<|message|>",
                  constrain_marker[] = "<|constrain|>", role[] = "assistant", to[] = "to=", functions[] = "functions.";

/* The first NUM_ENDS end a message; at the others a header may begin. */
enum { NUM_ENDS = 3, NUM_BOUNDARIES = 5 };
static const char *const boundaries[NUM_BOUNDARIES] = { "<|end|>", "<|return|>", "<|call|>", start_marker,
                                                        channel_marker };

/* ---- headers --------------------------------------------------------------------------------------------------------
 */

typedef struct header {
    size_t end;            /* behind <|message|> */
    size_t to_at, to_size; /* the recipient, or size 0 */
    bool is_analysis;
    bool is_marked; /* a whole marker stands in it: it is no text, though it may be cut */
    bool has_channel;
    bool has_type; /* of the content: "json", "code" */
} header;

static bool is_word_char(char c)
{
    return mf_answer_is_name(&c, 1) || c == '=' || c == '/' || c == '+' || c == ':';
}

static size_t word_end(const mf_answer_parser *p, size_t pos, size_t limit)
{
    while (pos < limit && is_word_char(p->in.data[pos])) {
        pos++;
    }
    return pos;
}

static bool is_word(const mf_answer_parser *p, size_t at, size_t end, const char *word)
{
    return end - at == strlen(word) && memcmp(p->in.data + at, word, end - at) == 0;
}

/* The channel's name at *pos. */
static mf_found read_channel(const mf_answer_parser *p, size_t limit, size_t *pos, header *h)
{
    size_t at = mf_answer_skip_space(p, *pos), end = word_end(p, at, limit);
    if (end >= limit) {
        return MF_FOUND_PART;
    }
    h->is_analysis = is_word(p, at, end, "analysis");
    h->has_channel = true;
    *pos = end;
    return h->is_analysis || is_word(p, at, end, "commentary") || is_word(p, at, end, "final") ? MF_FOUND_YES
                                                                                               : MF_FOUND_NO;
}

/* A recipient, or behind the channel a type of the content. */
static mf_found read_word(const mf_answer_parser *p, size_t limit, size_t *pos, header *h)
{
    size_t at = *pos, end = word_end(p, at, limit), prefix = sizeof to - 1;
    if (end >= limit) {
        return MF_FOUND_PART;
    }
    *pos = end;
    if (end - at > prefix && memcmp(p->in.data + at, to, prefix) == 0) {
        h->to_at = h->to_size > 0 ? h->to_at : at + prefix;
        h->to_size = h->to_size > 0 ? h->to_size : end - at - prefix;
        return MF_FOUND_YES;
    }
    bool is_type = end > at && h->has_channel && !h->has_type;
    h->has_type = true;
    return is_type ? MF_FOUND_YES : MF_FOUND_NO;
}

/* The header at `at`; `is_begun`: the prompt holds <|start|> and the role.  PART: so far it may become one. */
static mf_found read_header(const mf_answer_parser *p, size_t at, bool is_begun, header *h)
{
    static const char *const markers[] = { message_marker, channel_marker, constrain_marker };
    *h = (header){ .end = at };
    bool is_short = p->in.size - at < MAX_HEAD_BYTES;
    size_t limit = is_short ? p->in.size : at + MAX_HEAD_BYTES, pos = at;
    mf_found part = is_short ? MF_FOUND_PART : MF_FOUND_NO;
    mf_found found = mf_answer_at_marker(p, pos, start_marker);
    if (found == MF_FOUND_YES) {
        h->is_marked = true;
        pos += sizeof start_marker - 1;
        found = mf_answer_at_marker(p, pos, role);
        pos += sizeof role - 1;
    } else if (found == MF_FOUND_NO) {
        found = is_begun ? MF_FOUND_YES : mf_answer_at_marker(p, pos, channel_marker);
    }
    while (found == MF_FOUND_YES) {
        pos = mf_answer_skip_space(p, pos);
        if (pos >= limit) {
            return part;
        }
        if (p->in.data[pos] != '<') {
            found = read_word(p, limit, &pos, h);
            continue;
        }
        size_t which = 0;
        found = MF_FOUND_NO;
        for (size_t i = 0; i < 3 && found != MF_FOUND_YES; i++) {
            mf_found f = mf_answer_at_marker(p, pos, markers[i]);
            which = f == MF_FOUND_YES ? i : which;
            found = f == MF_FOUND_NO ? found : f;
        }
        if (found != MF_FOUND_YES) {
            break;
        }
        h->is_marked = true;
        pos += strlen(markers[which]);
        if (which == 0) {
            h->end = pos;
            return pos <= limit ? MF_FOUND_YES : MF_FOUND_NO;
        }
        found = which == 1 ? read_channel(p, limit, &pos, h) : MF_FOUND_YES;
    }
    return found == MF_FOUND_PART ? part : found;
}

/* ---- messages -------------------------------------------------------------------------------------------------------
 */

static mf_step go(mf_answer_parser *p, mf_harmony_state state)
{
    p->harmony.state = state;
    return MF_STEP_ON;
}

static mf_step go_body(mf_answer_parser *p, mf_answer_kind kind)
{
    p->harmony.kind = kind;
    return go(p, HARMONY_BODY);
}

static mf_step drop_rest(mf_answer_parser *p)
{
    p->at = p->in.size;
    return MF_STEP_WAIT;
}

/* What lies from `at` to `end`, of the message that is open. */
static void give_text(mf_answer_parser *p, size_t end)
{
    mf_harmony *h = &p->harmony;
    if (end > p->at && (h->kind == MF_ANSWER_CONTENT || h->kind == MF_ANSWER_REASONING)) {
        if (h->is_new && h->has[h->kind]) {
            mf_answer_give(p, h->kind, "\n", 1);
        }
        h->is_new = false;
        h->has[h->kind] = true;
    }
    mf_answer_give_to(p, h->kind, end);
}

static mf_step enter_message(mf_answer_parser *p, const header *h)
{
    size_t prefix = sizeof functions - 1;
    const char *recipient = p->in.data + h->to_at;
    bool is_call = p->options.calls && h->to_size > prefix && memcmp(recipient, functions, prefix) == 0 &&
                   mf_answer_is_name(recipient + prefix, h->to_size - prefix);
    p->harmony.is_new = true;
    if (is_call) {
        mf_answer_begin_call(p, recipient + prefix, h->to_size - prefix, NULL, 0);
    }
    p->at = h->end;
    return is_call ? go(p, HARMONY_CALL) : go_body(p, h->is_analysis ? MF_ANSWER_REASONING : MF_ANSWER_CONTENT);
}

/* At `pos` the message is over.  PART, of a text that goes on: perhaps. */
static mf_found is_over(const mf_answer_parser *p, size_t pos)
{
    mf_found part = MF_FOUND_NO;
    for (size_t i = 0; i < NUM_ENDS; i++) {
        mf_found f = mf_answer_at_marker(p, pos, boundaries[i]);
        if (f == MF_FOUND_YES) {
            return f;
        }
        part = f == MF_FOUND_PART ? f : part;
    }
    header h;
    mf_found f = read_header(p, pos, false, &h);
    if (f == MF_FOUND_PART && p->final && h.is_marked) {
        return MF_FOUND_YES; /* cut inside the next one's header */
    }
    part = f == MF_FOUND_NO ? part : f;
    return part == MF_FOUND_PART && p->final ? MF_FOUND_NO : part;
}

static mf_step step_begin(mf_answer_parser *p)
{
    header h;
    switch (read_header(p, p->at, true, &h)) {
    case MF_FOUND_YES:
        return enter_message(p, &h);
    case MF_FOUND_PART:
        if (!p->final) {
            return MF_STEP_WAIT;
        }
        return h.is_marked ? drop_rest(p) : go_body(p, MF_ANSWER_CONTENT);
    default:
        return go_body(p, MF_ANSWER_CONTENT);
    }
}

/* White space between messages, as at the end, is no text of theirs. */
static mf_step step_between(mf_answer_parser *p)
{
    size_t pos = mf_answer_skip_space(p, p->at);
    if (pos - p->at > MAX_HEAD_BYTES) {
        return go_body(p, MF_ANSWER_CONTENT);
    }
    if (pos == p->in.size) {
        return p->final ? drop_rest(p) : MF_STEP_WAIT;
    }
    switch (is_over(p, pos)) {
    case MF_FOUND_YES:
        p->at = pos; /* the end, or the header, is read as a body's */
        return go_body(p, MF_ANSWER_CONTENT);
    case MF_FOUND_PART:
        return MF_STEP_WAIT;
    default:
        return go_body(p, MF_ANSWER_CONTENT);
    }
}

static mf_step step_body(mf_answer_parser *p)
{
    size_t where, which = 0;
    mf_found f = mf_answer_find_marker(p, p->at, boundaries, NUM_BOUNDARIES, &where, &which);
    give_text(p, where);
    if (f != MF_FOUND_YES) {
        return MF_STEP_WAIT;
    }
    if (which < NUM_ENDS) {
        p->at += strlen(boundaries[which]);
        return go(p, HARMONY_BETWEEN);
    }
    header h;
    switch (read_header(p, p->at, false, &h)) {
    case MF_FOUND_YES:
        return enter_message(p, &h);
    case MF_FOUND_PART:
        return p->final ? drop_rest(p) : MF_STEP_WAIT;
    default:
        give_text(p, p->at + strlen(boundaries[which]));
        return MF_STEP_ON;
    }
}

/* No arguments at all are an empty object, so that they can be read as JSON. */
static mf_step step_call(mf_answer_parser *p)
{
    p->at = mf_answer_skip_space(p, p->at);
    if (p->at == p->in.size && !p->final) {
        return MF_STEP_WAIT;
    }
    mf_found over = p->at == p->in.size ? MF_FOUND_YES : is_over(p, p->at);
    if (over == MF_FOUND_PART) {
        return MF_STEP_WAIT;
    }
    if (over == MF_FOUND_YES) {
        mf_answer_give(p, MF_ANSWER_ARGUMENTS, "{}", 2);
        return go(p, HARMONY_BETWEEN);
    }
    if (p->in.data[p->at] != '{' && p->in.data[p->at] != '[') {
        return go_body(p, MF_ANSWER_ARGUMENTS);
    }
    p->scan = (mf_json_scan){ 0 };
    return go(p, HARMONY_CALL_ARGUMENTS);
}

static mf_step step_arguments(mf_answer_parser *p)
{
    size_t taken = mf_json_scan_run(&p->scan, p->in.data + p->at, p->in.size - p->at);
    mf_answer_give_to(p, MF_ANSWER_ARGUMENTS, p->at + taken);
    return p->scan.done ? go(p, HARMONY_BETWEEN) : MF_STEP_WAIT;
}

void mf_harmony_begin(mf_answer_parser *p)
{
    p->harmony =
        (mf_harmony){ .state = p->options.opens_reasoning ? HARMONY_BODY : HARMONY_BEGIN, .kind = MF_ANSWER_REASONING };
}

mf_step mf_harmony_step(mf_answer_parser *p)
{
    switch (p->harmony.state) {
    case HARMONY_BEGIN:
        return step_begin(p);
    case HARMONY_BETWEEN:
        return step_between(p);
    case HARMONY_BODY:
        return step_body(p);
    case HARMONY_CALL:
        return step_call(p);
    case HARMONY_CALL_ARGUMENTS:
        return step_arguments(p);
    }
    return MF_STEP_WAIT;
}
