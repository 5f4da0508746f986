/* handlers_text.c - /tokenize, /detokenize, /tokenizer_info. */
#include "server/app_impl.h"

static void not_yet(mf_exchange *exchange)
{
    mf_api_error error = { 0 };
    mf_api_fail(&error, 501, NULL, "not built yet");
    mf_exchange_reply_error(exchange, &error);
}

void mf_handle_tokenize(void *context, mf_exchange *exchange)
{
    (void)context;
    not_yet(exchange);
}

void mf_handle_detokenize(void *context, mf_exchange *exchange)
{
    (void)context;
    not_yet(exchange);
}

void mf_handle_tokenizer_info(void *context, mf_exchange *exchange)
{
    (void)context;
    not_yet(exchange);
}

void mf_handle_openapi(void *context, mf_exchange *exchange)
{
    (void)context;
    not_yet(exchange);
}
