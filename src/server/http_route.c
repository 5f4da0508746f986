/* http_route.c - which row of the route table a path is. */
#include <stdio.h>
#include <string.h>

#include "server/http_impl.h"

/* A path that ends in a star stands for all that begin with the rest and go on. */
static bool matches(const mf_route *route, const char *path, const char **tail)
{
    size_t n = strlen(route->path);
    *tail = "";
    if (n == 0 || route->path[n - 1] != '*') {
        return strcmp(route->path, path) == 0;
    }
    *tail = strlen(path) >= n ? path + n - 1 : "";
    return strlen(path) >= n && strncmp(route->path, path, n - 1) == 0;
}

static bool takes(const mf_route *route, const char *method)
{
    return strcmp(route->method, method) == 0 || (strcmp(route->method, "GET") == 0 && strcmp(method, "HEAD") == 0);
}

const mf_route *mf_route_find(const mf_route *routes, size_t num_routes, const char *method, const char *path,
                              const char **tail)
{
    const mf_route *starred = NULL;
    const char *rest, *starred_tail = "";
    for (size_t i = 0; i < num_routes; i++) {
        if (!takes(&routes[i], method) || !matches(&routes[i], path, &rest)) {
            continue;
        }
        if (!*rest) {
            *tail = "";
            return &routes[i];
        }
        if (!starred) {
            starred = &routes[i];
            starred_tail = rest;
        }
    }
    *tail = starred_tail;
    return starred;
}

void mf_route_allow(const mf_route *routes, size_t num_routes, const char *path, char *out, size_t size)
{
    const char *tail;
    size_t n = 0;
    out[0] = '\0';
    for (size_t i = 0; i < num_routes; i++) {
        if (matches(&routes[i], path, &tail) && !strstr(out, routes[i].method)) {
            n = strlen(out);
            snprintf(out + n, size - n, "%s%s, ", routes[i].method,
                     strcmp(routes[i].method, "GET") == 0 ? ", HEAD" : "");
        }
    }
    n = strlen(out);
    if (n) {
        snprintf(out + n, size - n, "OPTIONS");
    }
}
