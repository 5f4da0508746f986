/* handlers_text.c - /tokenize, /detokenize, /tokenizer_info and /openapi.json.  Long bodies are worked on beside the
 * loop. */
#include <string.h>

#include "base/sys.h"
#include "server/app_impl.h"
#include "server/openapi.h"
#include "server/text_endpoints.h"

enum { INLINE_BYTES = 8192 };

typedef mf_status (*text_work)(const mf_serve_model *model, const char *body, size_t size, mf_buffer *out,
                               mf_api_error *error);

/* A body that is worked on; the exchange may go meanwhile. */
typedef struct text_job {
    text_work work;
    const mf_serve_model *model;
    mf_exchange *exchange; /* NULL once it has gone */
    mf_buffer out;
    mf_api_error error;
    mf_status status;
    size_t size;
    char body[];
} text_job;

static void run(void *data)
{
    text_job *job = data;
    job->status = job->work(job->model, job->body, job->size, &job->out, &job->error);
}

static void reply(mf_exchange *exchange, mf_buffer *out, mf_status status, const mf_api_error *error)
{
    if (status != MF_OK && error->status != 0) {
        mf_exchange_reply_error(exchange, error);
        mf_buffer_close(out);
    } else {
        mf_app_reply(exchange, 200, out, status);
    }
}

static void done(void *data)
{
    text_job *job = data;
    if (job->exchange) {
        reply(job->exchange, &job->out, job->status, &job->error);
    }
    mf_buffer_close(&job->out);
    mf_free(job);
}

static void on_gone(void *data, mf_exchange *exchange, const char *cause)
{
    (void)exchange;
    (void)cause;
    ((text_job *)data)->exchange = NULL;
}

static const mf_exchange_events events_of_jobs = { .gone = on_gone };

static void hand_over(mf_app *app, mf_exchange *exchange, text_work work, const char *body, size_t size)
{
    mf_error err = { 0 };
    text_job *job = mf_alloc_zero(sizeof *job + size + 1);
    mf_status status = job ? MF_OK : mf_fail(&err, MF_ERR_NOMEM, "out of memory");
    if (status == MF_OK) {
        job->work = work;
        job->model = &app->model.serve;
        job->exchange = exchange;
        job->size = size;
        memcpy(job->body, body, size);
        status = mf_text_worker_submit(app->text, &(mf_text_job){ run, done, job, size }, &err);
    }
    if (status != MF_OK) {
        mf_api_error error = { 0 };
        mf_free(job);
        mf_api_fail(&error, 503, NULL, "The server is overloaded: %.200s.", err.message);
        error.retry_after_s = 1;
        mf_exchange_reply_error(exchange, &error);
        return;
    }
    mf_exchange_attach(exchange, &events_of_jobs, job);
    mf_exchange_drop_body(exchange);
}

static void handle(mf_app *app, mf_exchange *exchange, text_work work)
{
    size_t size;
    const char *body = mf_exchange_body(exchange, &size);
    mf_api_error error = { 0 };
    if (!app->model.serve.prompt->tokenizer) {
        mf_api_fail(&error, 501, NULL, "The model was started without a tokenizer.");
        mf_exchange_reply_error(exchange, &error);
    } else if (size > INLINE_BYTES) {
        hand_over(app, exchange, work, body, size);
    } else {
        mf_buffer out = { 0 };
        mf_status status = work(&app->model.serve, body, size, &out, &error);
        reply(exchange, &out, status, &error);
    }
}

void mf_handle_tokenize(void *context, mf_exchange *exchange)
{
    handle(context, exchange, mf_text_tokenize);
}

void mf_handle_detokenize(void *context, mf_exchange *exchange)
{
    handle(context, exchange, mf_text_detokenize);
}

static mf_status tokenizer_info(const mf_serve_model *model, const char *body, size_t size, mf_buffer *out,
                                mf_api_error *error)
{
    (void)body;
    (void)size;
    return mf_text_tokenizer_info(model, out, error);
}

void mf_handle_tokenizer_info(void *context, mf_exchange *exchange)
{
    handle(context, exchange, tokenizer_info);
}

void mf_handle_openapi(void *context, mf_exchange *exchange)
{
    mf_app *app = context;
    mf_openapi_options options = {
        .routes = mf_app_dev_routes,
        .num_routes = app->options->dev_endpoints ? mf_app_num_dev_routes : mf_app_num_routes,
        .version = MF_VERSION_STRING,
        .names = app->options->served_names,
        .num_names = app->options->num_served_names,
    };
    if (app->is_ready) {
        options.vocab_size = app->model.serve.vocab_size;
        options.max_model_len = app->model.serve.max_model_len;
    }
    mf_buffer out = { 0 };
    mf_error err = { 0 };
    mf_app_reply(exchange, 200, &out, mf_openapi_write(&options, &out, &err));
}
