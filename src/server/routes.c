/* routes.c - the one table of paths: access, 404, 405 and the API's file come from it. */
#include "server/app_impl.h"

/* The dev endpoint stands last, so that the table without it is a shorter view of the same rows. */
const mf_route mf_app_dev_routes[] = {
    { "POST", "/v1/completions", mf_handle_completions, "Continue a prompt", false },
    { "POST", "/v1/chat/completions", mf_handle_chat, "Answer a conversation", false },
    { "GET", "/v1/models", mf_handle_models, "The served names", false },
    { "GET", "/v1/models/*", mf_handle_model, "One served name", false },
    { "GET", "/v1/moe/expert-load", mf_handle_expert_load, "Tokens per expert and layer", false },
    { "POST", "/tokenize", mf_handle_tokenize, "Text or a conversation to token ids", false },
    { "POST", "/detokenize", mf_handle_detokenize, "Token ids to text", false },
    { "GET", "/tokenizer_info", mf_handle_tokenizer_info, "The tokenizer's special tokens and template", false },
    { "GET", "/health", mf_handle_health, "Whether requests are answered now", true },
    { "GET", "/ready", mf_handle_ready, "Whether one more request would be taken now", true },
    { "GET", "/live", mf_handle_live, "Whether the process answers", true },
    { "GET", "/ping", mf_handle_health, "As /health", true },
    { "GET", "/metrics", mf_handle_metrics, "Prometheus text", true },
    { "GET", "/version", mf_handle_version, "Version and device", true },
    { "GET", "/load", mf_handle_load, "Requests running and waiting", false },
    { "GET", "/server_info", mf_handle_server_info, "Plan, limits, names", false },
    { "GET", "/get_server_info", mf_handle_server_info, "As /server_info", false },
    { "GET", "/get_model_info", mf_handle_server_info, "As /server_info", false },
    { "GET", "/openapi.json", mf_handle_openapi, "This API", true },
    { "GET", "/", mf_handle_page, "A page to chat with the model", true },
    { "POST", "/reset_prefix_cache", mf_handle_reset_prefix_cache, "Forget cached prefixes", false },
};
const size_t mf_app_num_dev_routes = sizeof mf_app_dev_routes / sizeof *mf_app_dev_routes;
const size_t mf_app_num_routes = sizeof mf_app_dev_routes / sizeof *mf_app_dev_routes - 1;
