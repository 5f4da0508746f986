/* calls_impl.h - a call and its sequences, shared by the files that take it through its life: calls.c (HTTP side,
 * table), call_start.c (body to sequences), call_tokens.c (the engine's events), call_answer.c (what the client gets).
 */
#ifndef MF_SERVER_CALLS_IMPL_H
#define MF_SERVER_CALLS_IMPL_H

#include "server/answer.h"
#include "server/calls.h"
#include "server/prepare.h"
#include "server/tool_calls.h"
#include "text/stream.h"

typedef struct mf_call mf_call;

typedef struct mf_sequence {
    mf_call *call;
    int32_t prompt;  /* index of its prompt */
    int32_t index;   /* of its choice; with best_of above n, known at the end, and -1 for those left out */
    uint64_t serial; /* 0 = not, or no longer, at the service */

    mf_stream *stream; /* NULL: the model has no tokenizer */
    mf_buffer text;    /* since the last event; of the whole answer when it is not streamed */
    /* Chats that may hold tool calls or reasoning; NULL else, and text is all there is. */
    mf_answer_parser *parser;
    mf_buffer raw;       /* text on its way into the parser */
    mf_buffer reasoning; /* as text */
    mf_buffer calls;     /* entries of tool_calls, as JSON; the last one's arguments are still open */
    int32_t open_call;   /* -1 = none */
    const mf_tool_format *specials; /* NULL, or the format whose marks may be special tokens and are kept in the text */
    mf_logprob_lists logprobs;
    mf_buffer prompt_logprobs; /* the field's entries */
    mf_ids token_ids;          /* return_token_ids: since the last event, or all */
    int32_t next_prompt_token; /* whose logprob comes next */

    int32_t num_tokens;        /* that count: none after a stop string */
    int32_t num_unsent;        /* tokens since the last event */
    double sum_logprob;        /* best_of */
    bool is_stopped;           /* by a stop string; what the engine still says is not part of the answer */
    bool is_finished;          /* its last event came */
    bool is_told;              /* to the client of a stream */
    int32_t stop_string;       /* -1 = none */
    const char *finish_reason; /* set with is_finished */
    mf_stop_kind stop_kind;
    int32_t stop_id;
    mf_finish_reason engine_reason;
    bool never_ran; /* it expired in the queue */
    int32_t cached_tokens;
    double prefill_s;
    int64_t first_ns, last_ns; /* steps of its first and last token */
} mf_sequence;

typedef enum mf_call_stage {
    MF_CALL_READING = 0, /* on the text worker */
    MF_CALL_RUNNING,     /* its sequences are at the service */
    MF_CALL_ENDED        /* answered, failed or gone; waits for the last events of its sequences */
} mf_call_stage;

struct mf_call {
    mf_calls *calls;
    mf_call *previous, *next;
    mf_api_kind kind;
    mf_call_stage stage;
    mf_exchange *exchange; /* NULL once it is over */
    bool is_reading;       /* the worker holds it: it must not be freed */
    bool has_begun;        /* the stream's head is out */
    bool is_paused;

    /* of the reading */
    char *body; /* the worker's copy */
    size_t body_size;
    char timeout_header[32];
    bool has_timeout_header;
    mf_api_error error;
    mf_status read_status;

    mf_api_request *request;
    mf_prepared *prepared;
    mf_buffer head; /* of its bodies and events */
    int64_t received_ns, submitted_ns, deadline_ns, last_write_ns;
    char request_id[132];

    mf_sequence *sequences; /* [num_sequences], by prompt */
    int32_t num_sequences, per_prompt;
    int32_t num_unfinished;
    mf_token_names names;
};

struct mf_calls {
    mf_calls_options options;
    mf_call *first;
    int32_t num_live, num_paused;
    mf_buffer out; /* of the event or body being written */
    mf_service_event *events;
    mf_calls_rates total;
    unsigned char salt_key[16]; /* of this process: nobody can look for a cache_salt that meets another's */
};

/* call_start.c */
void mf_call_start(mf_call *call); /* the body is there */

/* call_tokens.c */
void mf_call_take_event(mf_call *call, mf_sequence *sequence, const mf_service_event *event);

/* call_message.c */
mf_status mf_sequence_open_parser(mf_call *call, mf_sequence *sequence); /* where the answer may need one */
mf_status mf_sequence_take_text(mf_sequence *sequence);                  /* raw to text, reasoning and calls */
mf_status mf_sequence_end_text(mf_sequence *sequence);
void mf_sequence_close_call(mf_sequence *sequence); /* before `calls` is sent */

/* call_answer.c */
void mf_call_send_step(mf_call *call, mf_sequence *sequence); /* a stream's event, when one is due */
void mf_call_send_end(mf_call *call,
                      mf_sequence *sequence); /* a sequence finished: its last event, or the whole answer */
void mf_call_send_ping(mf_call *call);
/* Tells the client, cancels what runs, ends the call. */
void mf_call_fail(mf_call *call, const mf_api_error *error);

/* calls.c */
void mf_call_cancel_sequences(mf_call *call);
void mf_call_pause(mf_call *call, bool paused);
void mf_call_end(mf_call *call);     /* the exchange is over; frees the call now or when its last event has come */
void mf_call_release(mf_call *call); /* frees it when nobody holds it any more */

#endif
