/* http_origin.c - which web pages may talk to the server: its own, and those that --allowed-origins names.
 *
 * A page is the server's own when its origin is the Host it talks to - and that Host is a name which nobody else can
 * point here: an address, localhost, this machine's name or the one listened on.  Otherwise a page of evil.example
 * whose name is made to resolve to 127.0.0.1 ("DNS rebinding") would pass as the server's own.  With keys set it would
 * still lack one, so then any name will do, as behind a proxy. */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "server/http_impl.h"

static bool is_named(const char *host, size_t n, const char *name)
{
    return name && strlen(name) == n && strncasecmp(host, name, n) == 0;
}

static bool is_fixed_name(const mf_http_server *server, const char *host, size_t n)
{
    char text[64];
    struct in_addr address;
    if (host[0] == '[') {
        return true; /* its form was checked with the head's */
    }
    if (n < sizeof text) {
        memcpy(text, host, n);
        text[n] = '\0';
        if (inet_pton(AF_INET, text, &address) == 1) {
            return true;
        }
    }
    size_t own = strlen(server->host_name);
    bool is_local = own && n == own + 6 && strncasecmp(host, server->host_name, own) == 0 &&
                    strncasecmp(host + own, ".local", 6) == 0;
    return is_named(host, n, "localhost") || is_named(host, n, server->options.host) ||
           (own && is_named(host, n, server->host_name)) || is_local;
}

bool mf_origin_is_own(const mf_http_server *server, const char *origin, const char *host)
{
    const char *authority = strncasecmp(origin, "http://", 7) == 0    ? origin + 7
                            : strncasecmp(origin, "https://", 8) == 0 ? origin + 8
                                                                      : NULL;
    if (!authority || !host[0] || strcasecmp(authority, host) != 0) {
        return false;
    }
    size_t n = host[0] == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":");
    return server->keys.num_keys > 0 || is_fixed_name(server, host, n);
}

bool mf_origin_is_allowed(const mf_http_server *server, const char *origin)
{
    for (size_t i = 0; i < server->options.num_allowed_origins; i++) {
        const char *allowed = server->options.allowed_origins[i];
        if (strcmp(allowed, "*") == 0 || strcmp(allowed, origin) == 0) {
            return true;
        }
    }
    return false;
}
