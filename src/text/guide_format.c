/* guide_format.c - the formats of JSON Schema that are made exactly, as patterns of what stands between the quotes. */
#include <string.h>

#include "text/guide_impl.h"

/* A date that the calendar has, years 1000 to 9999. */
#define YEAR "[1-9][0-9]{3}"
#define LEAP_YEAR "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|1[26]|[3579][26])00)"
#define DATE                                                                                            \
    "(?:" YEAR "-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)" \
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))|" LEAP_YEAR "-02-29)"
#define TIME "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#define LABEL "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#define OCTET "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#define H16 "[0-9A-Fa-f]{1,4}"

static const struct {
    const char *name, *pattern;
} formats[] = {
    { "date", DATE },
    { "time", TIME },
    { "date-time", DATE "T" TIME },
    { "duration", "P(?:[0-9]{1,4}W|[0-9]{1,4}Y(?:[0-9]{1,4}M(?:[0-9]{1,4}D)?)?|[0-9]{1,4}M(?:[0-9]{1,4}D)?|[0-9]{1,4}D"
                  "|(?:[0-9]{1,4}D)?T(?:[0-9]{1,4}H(?:[0-9]{1,4}M(?:[0-9]{1,4}S)?)?|[0-9]{1,4}M(?:[0-9]{1,4}S)?|[0-9]{1,4}S))" },
    { "email", "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,32}(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,31})?@" LABEL "(?:\\." LABEL
               "){1,2}" },
    { "hostname", LABEL "(?:\\." LABEL "){0,2}" },
    { "ipv4", OCTET "(?:\\." OCTET "){3}" },
    { "ipv6", "(?:(?:" H16 ":){7}" H16 "|::(?:" H16 "(?::" H16 "){0,5})?|(?:" H16 ":){1}(?::" H16 "){1,5}|(?:" H16
              ":){2}(?::" H16 "){1,4}|(?:" H16 ":){3}(?::" H16 "){1,3}|(?:" H16 ":){4}(?::" H16 "){1,2}|(?:" H16 ":){5}:" H16
              ")" },
    { "uuid", "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}" },
    { "uri", "[A-Za-z][A-Za-z0-9+.-]{0,15}://(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2}){1,253}(?::[0-9]{1,5})?"
             "(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*(?:\\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
             "(?:#(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?" },
    { "json-pointer", "(?:/(?:[^~/\\x00-\\x1f]|~[01])*)*" },
};

mf_guide_expr *mf_guide_format(mf_guide_build *b, const char *name)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if (strcmp(formats[i].name, name) == 0) {
            return mf_guide_parse_regex(b, formats[i].pattern, strlen(formats[i].pattern), true);
        }
    }
    return NULL;
}
