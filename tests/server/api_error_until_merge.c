/* api_error_until_merge.c - stands in for src/server/api_error.c on this branch. */
#include <stdio.h>

#include "server/api_error.h"

mf_status mf_api_fail(mf_api_error *error, int status, const char *param, const char *fmt, ...)
{
    va_list arguments;
    va_start(arguments, fmt);
    *error = (mf_api_error){ .status = status };
    vsnprintf(error->message, sizeof error->message, fmt, arguments);
    snprintf(error->param, sizeof error->param, "%s", param ? param : "");
    va_end(arguments);
    return status == 429 || status == 503 ? MF_ERR_BUSY : status >= 500 && status != 501 ? MF_ERR_INTERNAL : MF_ERR_INVALID;
}
