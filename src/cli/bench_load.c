/* bench_load.c - see bench_load.h. */
#include "cli/bench_load.h"

#include <event2/event.h>
#include <jansson.h>
#include <math.h>
#include <string.h>
#include <sys/resource.h>

#include "base/log.h"
#include "base/random.h"
#include "base/sys.h"

typedef struct load load;

typedef struct worker {
    load *run;
    mf_http_connection *connection;
    mf_bench_record *record; /* of the request under way; NULL: idle */
    mf_sse sse;
    mf_buffer other; /* an answer that is no stream */
    bool done_seen;
    double now_s;        /* of the bytes being read */
    struct worker *next; /* of the idle ones */
} worker;

struct load {
    const mf_load_options *options;
    const mf_bench_prompts *prompts;
    mf_bench_record *records;
    const double *arrivals; /* NULL: all at once */
    struct event_base *base;
    struct event *arrival, *tick;
    worker *workers, *idle;
    int64_t num_workers, most;          /* opened; allowed */
    int64_t arrived, started, finished; /* requests */
    int64_t failed, pieces;
    double start_s;
    mf_status status;
    mf_error *err;
};

/* ---- bodies ---- */

static json_t *list_of_ids(const mf_bench_prompt *p)
{
    json_t *ids = json_array();
    for (int64_t i = 0; i < p->prompt_len; i++) {
        json_array_append_new(ids, json_integer(p->ids[i]));
    }
    return ids;
}

static json_t *make_body(const mf_load_options *o, const mf_bench_prompt *p, int64_t index)
{
    json_t *text = p->ids ? list_of_ids(p) : json_stringn(p->text, p->size);
    json_t *body = json_pack("{s:s, s:o, s:I, s:b, s:{s:b}}", "model", o->model, o->chat ? "messages" : "prompt",
                             o->chat ? json_pack("[{s:s, s:o}]", "role", "user", "content", text) : text, "max_tokens",
                             (json_int_t)p->output_len, "stream", 1, "stream_options", "include_usage", 1);
    if (body && p->ids) { /* the answer has no text either */
        json_object_set_new(body, "return_token_ids", json_true());
    }
    if (body && o->ignore_eos) {
        json_object_set_new(body, "ignore_eos", json_true());
    }
    if (body && !isnan(o->temperature)) {
        json_object_set_new(body, "temperature", json_real(o->temperature));
        if (o->temperature > 0) { /* fused and unfused draw alike */
            json_object_set_new(body, "seed", json_integer((json_int_t)((o->seed + (uint64_t)index) & INT64_MAX)));
        }
    }
    return body;
}

/* ---- one request ---- */

static bool on_event(void *context, const char *data, size_t size)
{
    worker *w = context;
    bool goes_on = mf_bench_record_event(w->record, data, size, w->now_s);
    w->done_seen = !goes_on;
    w->run->pieces += goes_on;
    return goes_on;
}

static mf_status on_body(void *context, const char *bytes, size_t size, mf_error *err)
{
    worker *w = context;
    w->now_s = mf_now_s();
    const mf_http_response *head = mf_http_connection_response(w->connection);
    if (head->status != 200 || !head->is_event_stream) {
        w->other.limit = 1 << 20;
        size_t room = w->other.limit - w->other.size;
        return mf_buffer_append(&w->other, bytes, size < room ? size : room);
    }
    return mf_sse_feed(&w->sse, bytes, size, on_event, w, err);
}

static void start_next(load *run);

static void fail_run(load *run, mf_status status)
{
    run->status = status;
    event_base_loopbreak(run->base);
}

static void on_done(void *context, const mf_http_response *response, const mf_error *failure)
{
    worker *w = context;
    load *run = w->run;
    if (failure) {
        mf_bench_record_fail(w->record, "%s", failure->message);
    } else if (response->status != 200 || !response->is_event_stream) {
        mf_bench_record_refused(w->record, response->status, mf_buffer_text(&w->other), w->other.size);
    }
    mf_bench_record_end(w->record, w->done_seen);
    run->finished++;
    run->failed += !w->record->ok;
    w->record = NULL;
    w->next = run->idle;
    run->idle = w;
    if (run->finished == run->prompts->count) {
        event_base_loopbreak(run->base);
    } else {
        start_next(run);
    }
}

static worker *take_worker(load *run)
{
    worker *w = run->idle;
    if (w) {
        run->idle = w->next;
        return w;
    }
    if (run->num_workers == run->most) {
        return NULL;
    }
    w = &run->workers[run->num_workers];
    w->run = run;
    if (mf_http_connection_open(run->base, run->options->target, &w->connection, run->err) != MF_OK) {
        fail_run(run, MF_ERR_NOMEM);
        return NULL;
    }
    run->num_workers++;
    return w;
}

/* As many of the requests that have arrived as there are workers for. */
static void start_next(load *run)
{
    static const mf_http_request plain = { .method = "POST", .path = "/v1/completions", .silence_s = 6 * 3600 };
    while (run->started < run->arrived && run->status == MF_OK) {
        worker *w = take_worker(run);
        if (!w) {
            return;
        }
        int64_t index = run->started++;
        json_t *body = make_body(run->options, &run->prompts->items[index], index);
        char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
        json_decref(body);
        mf_http_request request = plain;
        request.path = run->options->chat ? "/v1/chat/completions" : plain.path;
        request.api_key = run->options->api_key;
        request.body = text;
        request.body_size = text ? strlen(text) : 0;
        w->record = &run->records[index];
        w->record->output_len = -1;
        w->record->prompt_len = run->prompts->items[index].prompt_len;
        w->done_seen = false;
        mf_sse_reset(&w->sse);
        mf_buffer_clear(&w->other);
        mf_http_handler handler = { w, on_body, on_done };
        w->record->start_s = mf_now_s();
        mf_error err = { 0 };
        mf_status status = text ? mf_http_connection_send(w->connection, &request, &handler, &err)
                                : mf_fail(&err, MF_ERR_NOMEM, "client: out of memory");
        mf_free(text);
        if (status != MF_OK) { /* before anything was sent: no descriptor, no memory */
            mf_bench_record_fail(w->record, "%s", err.message);
            mf_bench_record_end(w->record, false);
            w->record = NULL;
            w->next = run->idle;
            run->idle = w;
            run->finished++;
            run->failed++;
            if (run->finished == run->prompts->count) {
                event_base_loopbreak(run->base);
            }
        }
    }
}

/* ---- arrivals ---- */

/* Marsaglia and Tsang (2000); below shape 1 a uniform power corrects a draw of shape + 1. */
static double draw_gamma(double shape, uint64_t *state)
{
    double boost = 1;
    if (shape < 1) {
        double u = mf_random_unit(state);
        boost = pow(u > 0 ? u : 0x1p-53, 1 / shape);
        shape += 1;
    }
    const double d = shape - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double u1 = mf_random_unit(state), u2 = mf_random_unit(state);
        double normal = sqrt(-2 * log(1 - u1)) * cos(2 * 3.14159265358979323846 * u2);
        double v = 1 + c * normal;
        if (v <= 0) {
            continue;
        }
        v = v * v * v;
        double u = 1 - mf_random_unit(state);
        if (log(u) < 0.5 * normal * normal + d - d * v + d * log(v)) {
            return boost * d * v;
        }
    }
}

void mf_load_arrivals(double *times, int64_t count, double rate, double burstiness, uint64_t seed)
{
    uint64_t state = seed ^ 0x6172726976616c73u;
    double at = 0;
    for (int64_t i = 0; i < count; i++) {
        at += draw_gamma(burstiness, &state) / (rate * burstiness);
        times[i] = at;
    }
    double scale = at > 0 ? (double)count / rate / at : 1;
    double first = count > 0 ? times[0] : 0;
    for (int64_t i = 0; i < count; i++) {
        times[i] = (times[i] - first) * scale;
    }
}

static void on_arrival(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    load *run = context;
    double now = mf_now_s() - run->start_s;
    while (run->arrived < run->prompts->count && (!run->arrivals || run->arrivals[run->arrived] <= now)) {
        run->arrived++;
    }
    if (run->arrived < run->prompts->count) {
        double wait = run->arrivals[run->arrived] - now;
        struct timeval delay = { (time_t)wait, (suseconds_t)((wait - floor(wait)) * 1e6) + 1 };
        event_add(run->arrival, &delay);
    }
    start_next(run);
}

static void on_tick(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    load *run = context;
    const mf_load_options *o = run->options;
    if (o->progress && !o->progress(o->context, run->finished, run->failed, run->pieces, mf_now_s() - run->start_s)) {
        mf_fail(run->err, MF_ERR_CANCELLED, "interrupted");
        fail_run(run, MF_ERR_CANCELLED);
    }
}

int64_t mf_load_max_connections(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return 64;
    }
    if (limit.rlim_cur < limit.rlim_max) {
        struct rlimit more = { limit.rlim_max, limit.rlim_max };
        if (setrlimit(RLIMIT_NOFILE, &more) == 0) {
            limit = more;
        }
    }
    /* What the loop, the model's server and the standard streams take, with room. */
    int64_t most = limit.rlim_cur > 65536 + 64 ? 65536 : (int64_t)limit.rlim_cur - 64;
    return most > 1 ? most : 1;
}

static mf_status prepare(load *run, double **arrivals, mf_error *err)
{
    const mf_load_options *o = run->options;
    const int64_t count = run->prompts->count;
    int64_t wanted = o->max_concurrency > 0 && o->max_concurrency < count ? o->max_concurrency : count;
    run->most = mf_load_max_connections();
    if (run->most < wanted) {
        mf_log(MF_LOG_WARN,
               "only %lld of %lld requests run at once: the limit of open files (ulimit -n) allows no more",
               (long long)run->most, (long long)wanted);
    } else {
        run->most = wanted;
    }
    run->base = event_base_new();
    run->workers = mf_alloc_array((size_t)run->most, sizeof *run->workers);
    if (isfinite(o->request_rate)) {
        *arrivals = mf_alloc_array((size_t)count, sizeof **arrivals);
        if (*arrivals) {
            mf_load_arrivals(*arrivals, count, o->request_rate, o->burstiness, o->seed);
        }
        run->arrivals = *arrivals;
    }
    run->arrival = run->base ? event_new(run->base, -1, 0, on_arrival, run) : NULL;
    run->tick = run->base ? event_new(run->base, -1, EV_PERSIST, on_tick, run) : NULL;
    bool complete = run->workers && run->arrival && run->tick && (run->arrivals || !isfinite(o->request_rate));
    return complete ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "bench: out of memory");
}

mf_status mf_load_run(const mf_load_options *options, const mf_bench_prompts *prompts, mf_bench_record *records,
                      double *duration_s, mf_error *err)
{
    load run = { .options = options, .prompts = prompts, .records = records, .err = err };
    double *arrivals = NULL;
    mf_status status = prepare(&run, &arrivals, err);
    if (status == MF_OK) {
        const struct timeval tenth = { 0, 100000 };
        event_add(run.tick, &tenth);
        run.start_s = mf_now_s();
        event_active(run.arrival, EV_TIMEOUT, 1);
        while (run.status == MF_OK && run.finished < prompts->count) {
            if (event_base_loop(run.base, EVLOOP_NO_EXIT_ON_EMPTY) < 0) {
                run.status = mf_fail(err, MF_ERR_INTERNAL, "bench: the event loop failed");
            }
        }
        status = run.status;
        *duration_s = mf_now_s() - run.start_s;
    }
    for (int64_t i = 0; i < run.num_workers; i++) {
        mf_http_connection_close(&run.workers[i].connection);
        mf_sse_close(&run.workers[i].sse);
        mf_buffer_close(&run.workers[i].other);
    }
    mf_free(run.workers);
    if (run.arrival) {
        event_free(run.arrival);
    }
    if (run.tick) {
        event_free(run.tick);
    }
    if (run.base) {
        event_base_free(run.base);
    }
    mf_free(arrivals);
    return status;
}
