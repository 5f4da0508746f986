/* bench_record.h - one streamed request as the bench keeps it: when each piece came, how many tokens, what went wrong.
 */
#ifndef MF_CLI_BENCH_RECORD_H
#define MF_CLI_BENCH_RECORD_H

#include "cli/sse.h"

typedef struct mf_bench_record {
    bool ok;
    double start_s;   /* monotonic, before the first byte was sent */
    double ttft_s;    /* to the first piece of the answer */
    double latency_s; /* to the last */
    double *itls_s;   /* between pieces */
    size_t num_itls, itl_room;
    int64_t prompt_len; /* tokens sent */
    int64_t output_len; /* tokens made, as the server's usage says; -1: it did not say */
    mf_buffer text;     /* the answer */
    char error[256];    /* why not ok */
} mf_bench_record;

/* One event's JSON, arrived at now_s.  Returns false when nothing is to come: [DONE] or an error event.  As vLLM's
 * client counts them: every event with a choice is a piece, the first one ends TTFT, with usage or text or not. */
bool mf_bench_record_event(mf_bench_record *record, const char *data, size_t size, double now_s);
/* The stream is over: ok unless an error was seen, or no piece came, or (cut) it ended without [DONE]. */
void mf_bench_record_end(mf_bench_record *record, bool done_seen);
void mf_bench_record_fail(mf_bench_record *record, const char *fmt, ...) MF_PRINTF(2, 3);
/* An answer that is no stream, of any status: what it says is wrong. */
void mf_bench_record_refused(mf_bench_record *record, int status, const char *body, size_t size);
void mf_bench_record_close(mf_bench_record *record);

#endif
