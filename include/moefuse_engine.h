/* moefuse_engine.h - the engine's C interface: a Hugging Face model directory in, token ids out, many requests at once.
 *
 * The caller steps the engine: submit requests, call mf_engine_step in a loop, read the events it returns.  Ids go in and
 * ids come out; text, chat templates and stop strings live above (a caller that finds a stop string cancels).
 *
 * Rules that hold for every function:
 *  - All calls on one engine come from one thread.  Nothing here blocks but the work of a step itself.
 *  - A function that can fail returns mf_status and, when `err` is not NULL, writes a one-line message into it.
 *  - After open, memory grows only in mf_engine_submit, bounded by the queue's limits and max_model_len; a step allocates
 *    nothing.
 *  - What a request answers depends on its own tokens, parameters and seed alone: not on its neighbours, on the chunks its
 *    prompt ran in, on prefix reuse, or on being preempted. */
#ifndef MOEFUSE_ENGINE_H
#define MOEFUSE_ENGINE_H

#include "moefuse.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- open --------------------------------------------------------------------------------------------------------- */

typedef struct mf_engine_progress {
    const char *what; /* "loading" */
    int32_t files_done, files_total;
    int64_t bytes_done, bytes_total;
    double seconds; /* since the work began */
} mf_engine_progress;

typedef struct mf_engine_options {
    size_t struct_size;             /* sizeof(mf_engine_options), set by MF_ENGINE_OPTIONS_INIT */
    const char *model_dir;          /* Hugging Face layout */
    const char *device;             /* NULL = "cpu"; "cuda" or "cuda:N": see mf_device_open */
    int32_t num_threads;            /* 0 = all */
    int32_t pin_threads;            /* 1: each thread stays on a CPU of its own; see mf_device_options */
    mf_numa numa;                   /* of the KV cache, scratch memory, and weights that are not mapped */
    mf_dtype act_dtype;             /* MF_F32 (0), or MF_BF16: inputs of linear layers and experts are rounded to it */
    mf_dtype kv_cache_dtype;        /* MF_F32 (0), or MF_BF16: half the memory; queries and softmax weights may be rounded too */
    int32_t auto_dtype;             /* 1: act_dtype is bf16 if the checkpoint is and the device multiplies that faster, else f32 */
    int32_t auto_kv_cache_dtype;    /* 1: kv_cache_dtype is what act_dtype is */
    const char *quantization;       /* NULL or "none"; "int8", "int4", "fp8": weights stored unquantised become codes while loading */
    mf_act_quant act_quant;         /* of the experts: MF_ACT_QUANT_NONE (0), MF_ACT_QUANT_INT8 or MF_ACT_QUANT_W8A8 */
    int32_t load_format_dummy;      /* 1: seeded random weights from config.json alone */
    int32_t no_mmap;                /* 1: read weights into memory of their own, on huge pages, instead of mapping them */
    uint64_t seed;                  /* of dummy weights, and of requests that bring none */
    int64_t max_model_len;          /* tokens of one sequence; 0 = the model's, reduced to what the KV cache can hold */
    int32_t max_num_seqs;           /* sequences per step */
    int32_t max_num_batched_tokens; /* tokens per step; longer prompts run in chunks */
    int32_t block_size;             /* tokens of a KV block */
    int64_t kv_cache_memory_bytes;  /* 0 = half of what is free after the weights; with the states of linear layers, for which
                                       fewer than max_num_seqs may run */
    double gpu_memory_utilization;  /* of a device with memory of its own: the part that weights, scratch memory and KV cache may
                                       take beside what others have; 0 = 0.9.  There kv_cache_memory_bytes 0 = all that is left */
    int32_t enable_prefix_caching;  /* without effect on models with linear layers: a state cannot be shared */
    int32_t max_num_queued_reqs;
    int64_t max_num_queued_tokens;  /* prompt tokens waiting; 0 = 64 * max_num_batched_tokens */
    const int32_t *stop_token_ids;  /* [num_stop_token_ids]: end a sequence beside the model's eos ids; copied; at most 16 */
    int32_t num_stop_token_ids;
    int32_t num_sampled_ids;        /* ids at or past it are padding rows of the vocabulary and never chosen; 0 = all */
    int32_t disable_shared_experts_fusion;
    int32_t disable_fused_gate;
    int32_t disable_fusion_bands;   /* 1: shared experts in slots at any number of tokens, whatever a GPU's measured bands say */
    int32_t num_shared_expert_replicas; /* 1..64 */
    int32_t (*progress)(void *context, const mf_engine_progress *info); /* optional; 0 = stop loading: MF_ERR_CANCELLED */
    void *progress_context;
} mf_engine_options;

#define MF_ENGINE_OPTIONS_INIT                                                                                      \
    {                                                                                                               \
        .struct_size = sizeof(mf_engine_options), .max_num_seqs = 128, .max_num_batched_tokens = 2048,              \
        .block_size = 16, .enable_prefix_caching = 1, .max_num_queued_reqs = 1024, .num_shared_expert_replicas = 1  \
    }

typedef struct mf_engine mf_engine;

MF_API mf_status mf_engine_open(const mf_engine_options *options, mf_engine **engine, mf_error *err);
/* Drops what is queued or running without events.  NULL is fine; sets *engine to NULL. */
MF_API void mf_engine_close(mf_engine **engine);

MF_API int32_t mf_engine_vocab_size(const mf_engine *engine);
MF_API int64_t mf_engine_max_model_len(const mf_engine *engine);
MF_API int32_t mf_engine_num_eos_token_ids(const mf_engine *engine);
MF_API const int32_t *mf_engine_eos_token_ids(const mf_engine *engine);
/* Events that one step can produce at most: a buffer of this many never makes a step wait for its events to be read. */
MF_API int32_t mf_engine_max_events(const mf_engine *engine);

/* ---- requests ----------------------------------------------------------------------------------------------------- */

#define MF_MAX_LOGPROBS 20
#define MF_MAX_STOP_TOKEN_IDS 1024
#define MF_MAX_LOGIT_BIAS 1024
#define MF_MAX_BAD_WORDS 256 /* sequences of ids: a word has one or two, without and with a space before it */
#define MF_MAX_BAD_WORD_TOKENS 256

typedef struct mf_logit_bias {
    int32_t token_id;
    float bias; /* -100..100 */
} mf_logit_bias;

/* The processing order is vLLM's: the guide's mask, allowed ids, bad words, min_tokens, logit bias, penalties (repetition, frequency,
 * presence), temperature, min_p, top_k, top_p.  Log-probabilities are the model's own, before all of these. */
typedef struct mf_sampling_params {
    int32_t max_tokens;        /* 0..; -1 = the rest of the context; 0 runs the prompt only */
    int32_t min_tokens;        /* 0..max_tokens: until then neither EOS nor a stop id is chosen, unless a guide allows
                                  nothing else: then its text is whole, and the guide wins */
    double temperature;        /* 0..2; below 1e-5 = greedy, ties to the lower id */
    int32_t top_k;             /* -1, 0 = off; exactly k ids stay, ties to the lower id */
    double top_p;              /* (0, 1] */
    double min_p;              /* 0..1 */
    double repetition_penalty; /* (0, 10], 1 = off; over prompt and completion */
    double presence_penalty;   /* -2..2, over the completion */
    double frequency_penalty;  /* -2..2, over the completion */
    int32_t has_seed;
    int32_t ignore_eos;
    int64_t seed;              /* same seed, same prompt: same tokens, whatever runs beside it */
    int32_t logprobs;          /* -1 = none; n = the token's own and the n best, 0..MF_MAX_LOGPROBS */
    int32_t prompt_logprobs;   /* the same for each prompt token but the first; such a request reads no cached prefix */
    const int32_t *stop_token_ids;
    int32_t num_stop_token_ids;
    int32_t num_allowed_token_ids; /* 0 = all */
    const int32_t *allowed_token_ids;
    const mf_logit_bias *logit_bias;
    int32_t num_logit_bias;
    int32_t num_bad_words;
    const int32_t *bad_words;        /* token ids of all words, one word after the other */
    const int32_t *bad_word_lengths; /* [num_bad_words] */
} mf_sampling_params;

/* Constrained decoding: who says which ids may come next.  The engine calls one guide's functions one at a time, on any of its
 * threads: fill before each token, accept once for each token in its order (also when the request was preempted and computed
 * again), and release exactly once when the request has ended (also when it never ran, and when the engine is closed). */
typedef struct mf_guide {
    void *context;
    /* mask [(vocab_size + 31) / 32], zeroed: sets bit i for each id that may come next.  No bit at all ends the request with
     * MF_FINISH_ERROR.  With ignore_eos EOS does not end the request, and the guide is asked again after it. */
    void (*fill)(void *context, uint32_t *mask, int32_t vocab_size);
    void (*accept)(void *context, int32_t token_id); /* the id that was chosen */
    void (*release)(void *context);
} mf_guide;

typedef struct mf_request {
    size_t struct_size; /* sizeof(mf_request), set by MF_REQUEST_INIT */
    const int32_t *prompt_token_ids;
    int32_t num_prompt_tokens;
    mf_sampling_params sampling;
    int64_t deadline_ns; /* on the monotonic clock; 0 = none.  Passed in the queue: never started */
    int32_t priority;    /* the lower starts first; equal ones in the order they came */
    void *user_data;     /* handed back in events */
    mf_guide guide;      /* fill NULL = none, else all three are set.  The engine's from a successful submit on; else it stays the caller's */
    uint64_t cache_salt; /* cached prefixes are shared among requests of equal salt only; 0 = none.  The top bit is not looked at */
} mf_request;

#define MF_SAMPLING_PARAMS_INIT                                                                                        \
    {                                                                                                                  \
        .max_tokens = 16, .temperature = 1.0, .top_p = 1.0, .repetition_penalty = 1.0, .logprobs = -1,                 \
        .prompt_logprobs = -1                                                                                          \
    }
#define MF_REQUEST_INIT { .struct_size = sizeof(mf_request), .sampling = MF_SAMPLING_PARAMS_INIT }

/* Copies the request into the queue and gives it an id that is never 0 and never used again.
 * MF_ERR_INVALID names the field, its value and its range; MF_ERR_BUSY: the queue is full, try later. */
MF_API mf_status mf_engine_submit(mf_engine *engine, const mf_request *request, uint64_t *request_id, mf_error *err);

/* Ends a request wherever it is; its blocks are free on return, and a MF_FINISH_CANCELLED event follows.  An id that has
 * ended already, or never was, is counted and ignored. */
MF_API void mf_engine_cancel(mf_engine *engine, uint64_t request_id);

/* A paused request keeps its place and its KV blocks but makes no tokens until it is resumed. */
MF_API void mf_engine_pause(mf_engine *engine, uint64_t request_id, int32_t paused);

/* ---- steps -------------------------------------------------------------------------------------------------------- */

typedef enum mf_event_type { MF_EVENT_TOKEN = 0, MF_EVENT_PROMPT_LOGPROB, MF_EVENT_FINISHED } mf_event_type;

typedef enum mf_finish_reason {
    MF_FINISH_NONE = 0,
    MF_FINISH_STOP,      /* EOS or a stop id */
    MF_FINISH_LENGTH,    /* max_tokens */
    MF_FINISH_CANCELLED,
    MF_FINISH_DEADLINE,
    MF_FINISH_ERROR      /* NaN or infinity in this request's logits, or the device failed */
} mf_finish_reason;

MF_API const char *mf_finish_reason_name(mf_finish_reason reason); /* "stop", "length", "abort", "deadline", "error" */

typedef struct mf_logprob {
    int32_t token_id;
    float logprob;
} mf_logprob;

typedef struct mf_event {
    mf_event_type type;
    mf_finish_reason finish_reason; /* FINISHED */
    uint64_t request_id;
    void *user_data;
    /* TOKEN, PROMPT_LOGPROB */
    int32_t token_id;
    int32_t position;               /* index in prompt + completion */
    float logprob;                  /* NaN when not asked for */
    int32_t rank;                   /* PROMPT_LOGPROB: among all ids, 1 = the best, ties by id; TOKEN: 0 */
    int32_t num_top_logprobs;
    const mf_logprob *top_logprobs; /* best first, ties by id; valid until the next call of mf_engine_step */
    /* FINISHED */
    int32_t stop_token_id;          /* the stop id that ended it, the request's own; -1 = EOS or none */
    int32_t prompt_tokens, cached_tokens, completion_tokens;
    double queue_s;                 /* submitted -> first scheduled (or ended) */
    double prefill_s;               /* first scheduled -> first token */
    double ttft_s;                  /* submitted -> first token; 0 when there was none */
    double decode_s;                /* first token -> last token */
} mf_event;

/* Plans a batch, runs it, samples, and returns what happened.  Events that do not fit `capacity` come with the next calls,
 * which then run no batch until all tokens are read.  When the batch itself fails, its requests end with MF_FINISH_ERROR,
 * *num_events is set all the same, and the status says why. */
MF_API mf_status mf_engine_step(mf_engine *engine, mf_event *events, int32_t capacity, int32_t *num_events, mf_error *err);

/* 1 when a step would do something: a loop may sleep on 0 until the next submit, cancel, resume or deadline. */
MF_API int32_t mf_engine_has_work(const mf_engine *engine);

/* Forgets all cached prefixes that nobody uses. */
MF_API void mf_engine_reset_prefix_cache(mf_engine *engine);

/* ---- statistics --------------------------------------------------------------------------------------------------- */

typedef struct mf_engine_stats {
    int32_t num_running, num_waiting, num_paused;
    int64_t num_waiting_tokens;
    int32_t kv_block_size;
    int32_t kv_blocks_total, kv_blocks_free, kv_blocks_used, kv_blocks_cached; /* free + used + cached == total */
    int64_t num_steps;
    int64_t num_submitted, num_refused_busy, num_refused_invalid;
    int64_t num_finished[MF_FINISH_ERROR + 1]; /* by mf_finish_reason */
    int64_t prompt_tokens, generation_tokens;  /* prompt tokens of requests that began; tokens made */
    int64_t computed_tokens;                   /* rows that went through the model, recomputed ones too */
    int64_t prefix_cache_queries, prefix_cache_hits; /* tokens */
    int64_t num_preemptions;
    int64_t num_late_events;          /* cancels of ids that were gone */
    int64_t num_invariant_violations;
    int32_t last_step_prefill_tokens, last_step_decode_tokens;
    /* Logical ids' counts since open, [num_layers, num_experts]; NULL when the model has none. */
    const int64_t *expert_load;
    int32_t num_layers, num_experts;
    int64_t num_bad_rows;             /* rows with a NaN router logit, over all layers */
} mf_engine_stats;

MF_API void mf_engine_get_stats(const mf_engine *engine, mf_engine_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
