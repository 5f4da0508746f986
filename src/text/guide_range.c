/* guide_range.c - decimal numbers between two bounds: digit by digit, as long as what was written equals a bound's digits that
 * bound still counts ("tight"), and then no more. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/guide_impl.h"

enum { MAX_DIGITS = 18, MAX_FRACTION = 15, MAX_BOUND_FRACTION = 400 };

static mf_guide_expr *digit(mf_guide_build *b, char low, char high)
{
    return mf_guide_set(b, &(mf_char_range){ (uint32_t)low, (uint32_t)high }, 1, false);
}

static void add_step(mf_guide_build *b, mf_guide_list *list, char low, char high, mf_guide_expr *rest)
{
    if (low <= high && rest) {
        mf_guide_list_add(b, list, mf_guide_seq2(b, digit(b, low, high), rest));
    }
}

/* NULL, and no failure, when the list is empty. */
static mf_guide_expr *any_of(mf_guide_build *b, const mf_guide_list *list)
{
    return list->num > 0 && b->status == MF_OK ? mf_guide_alt(b, list->items, list->num) : NULL;
}

/* ---- integers ----------------------------------------------------------------------------------------------------- */

/* Numbers of n digits from low to high, both of n digits. */
static mf_guide_expr *equal_length(mf_guide_build *b, const char *low, const char *high, int32_t n)
{
    /* behind[l][h]: of the rest, where the lower or the upper bound is tight */
    mf_guide_expr *behind[2][2];
    behind[0][0] = behind[0][1] = behind[1][0] = behind[1][1] = mf_guide_empty(b);
    for (int32_t i = n; i-- > 0;) {
        mf_guide_list lists[2][2] = { { { 0 } } };
        add_step(b, &lists[0][0], '0', '9', behind[0][0]);
        add_step(b, &lists[1][0], low[i], low[i], behind[1][0]);
        add_step(b, &lists[1][0], (char)(low[i] + 1), '9', behind[0][0]);
        add_step(b, &lists[0][1], high[i], high[i], behind[0][1]);
        add_step(b, &lists[0][1], '0', (char)(high[i] - 1), behind[0][0]);
        if (low[i] == high[i]) {
            add_step(b, &lists[1][1], low[i], low[i], behind[1][1]);
        } else {
            add_step(b, &lists[1][1], low[i], low[i], behind[1][0]);
            add_step(b, &lists[1][1], (char)(low[i] + 1), (char)(high[i] - 1), behind[0][0]);
            add_step(b, &lists[1][1], high[i], high[i], behind[0][1]);
        }
        for (int t = 0; t < 4; t++) {
            behind[t / 2][t % 2] = any_of(b, &lists[t / 2][t % 2]);
        }
    }
    return behind[1][1];
}

/* Magnitudes low..high; high -1 = without end, which is 18 digits. */
static mf_guide_expr *magnitudes(mf_guide_build *b, int64_t low, int64_t high)
{
    const int64_t most = 999999999999999999;
    mf_guide_list list = { 0 };
    high = high < 0 || high > most ? most : high;
    if (low == 0 && high >= 0) {
        mf_guide_list_add(b, &list, mf_guide_text(b, "0"));
        low = 1;
    }
    int64_t first = 1; /* of n digits */
    for (int32_t n = 1; n <= MAX_DIGITS; n++, first *= 10) {
        int64_t last = first * 10 - 1;
        int64_t from = low > first ? low : first, to = high < last ? high : last;
        char from_text[24], to_text[24];
        if (from <= to) {
            snprintf(from_text, sizeof from_text, "%lld", (long long)from);
            snprintf(to_text, sizeof to_text, "%lld", (long long)to);
            mf_guide_list_add(b, &list, equal_length(b, from_text, to_text, n));
        }
    }
    return any_of(b, &list);
}

static mf_guide_expr *negative(mf_guide_build *b, mf_guide_expr *magnitude)
{
    return mf_guide_seq2(b, mf_guide_text(b, "-"), magnitude);
}

mf_guide_expr *mf_guide_integer_range(mf_guide_build *b, const char *least, const char *most)
{
    long long low = least ? strtoll(least, NULL, 10) : 0;
    long long high = most ? strtoll(most, NULL, 10) : 0;
    mf_guide_list list = { 0 };
    if (!least || low < 0) {
        int64_t from = most && high < 0 ? -(int64_t)(high + 1) + 1 : 1;
        mf_guide_expr *m = magnitudes(b, from, least ? -(int64_t)(low + 1) + 1 : -1);
        if (m) {
            mf_guide_list_add(b, &list, negative(b, m));
        }
    }
    if (!most || high >= 0) {
        mf_guide_expr *m = magnitudes(b, least && low > 0 ? low : 0, most ? high : -1);
        if (m) {
            mf_guide_list_add(b, &list, m);
        }
    }
    if (list.num == 0) {
        mf_guide_build_fail(b, MF_ERR_INVALID, "minimum %s is above maximum %s, or beyond 18 digits", least ? least : "",
                            most ? most : "");
    }
    return any_of(b, &list);
}

/* ---- fractions ---------------------------------------------------------------------------------------------------- */

/* A bound of a magnitude: whole part, digits of the fraction, and whether the bound itself is out. */
typedef struct bound {
    int64_t whole;
    const char *fraction;
    bool is_out;
} bound;

static bool only_zeros(const char *digits)
{
    return digits[strspn(digits, "0")] == '\0';
}

static char digit_at(const char *digits, int32_t i)
{
    return i < (int32_t)strlen(digits) ? digits[i] : '0';
}

static const char *tail_at(const char *digits, int32_t i)
{
    return i < (int32_t)strlen(digits) ? digits + i : "";
}

/* Of what follows the whole part: "" and ".ddd", above low (NULL = any) and below high (NULL = any). */
static mf_guide_expr *fractions(mf_guide_build *b, const bound *low, const bound *high)
{
    int32_t n = 0;
    n = low && (int32_t)strlen(low->fraction) > n ? (int32_t)strlen(low->fraction) : n;
    n = high && (int32_t)strlen(high->fraction) > n ? (int32_t)strlen(high->fraction) : n;
    n += 2; /* so that an excluded bound can be passed by a digit behind it */
    mf_guide_expr *behind[2][2] = { { NULL, NULL }, { NULL, NULL } };
    for (int32_t i = n; i >= 0; i--) {
        mf_guide_expr *here[2][2];
        for (int t = 0; t < 4; t++) {
            bool is_low = t / 2, is_high = t % 2;
            mf_guide_list list = { 0 };
            bool low_holds = !(is_low && low) || (!low->is_out && only_zeros(tail_at(low->fraction, i)));
            bool high_holds = !(is_high && high && high->is_out && only_zeros(tail_at(high->fraction, i)));
            bool ends = low_holds && high_holds;
            if (ends && i > 0) {
                mf_guide_list_add(b, &list, mf_guide_empty(b));
            }
            if (i < n) {
                char from = is_low && low ? digit_at(low->fraction, i) : '0';
                char to = is_high && high ? digit_at(high->fraction, i) : '9';
                bool low_counts = is_low && low, high_counts = is_high && high;
                if (from == to && (low_counts || high_counts)) {
                    add_step(b, &list, from, from, behind[low_counts][high_counts]);
                } else if (from <= to) {
                    char first = from, last = to;
                    if (low_counts) {
                        add_step(b, &list, from, from, behind[1][0]);
                        first++;
                    }
                    if (high_counts) {
                        add_step(b, &list, to, to, behind[0][1]);
                        last--;
                    }
                    add_step(b, &list, first, last, behind[0][0]);
                }
            } else if (!(is_low && low) && !(is_high && high)) {
                mf_guide_list_add(b, &list, mf_guide_repeat(b, digit(b, '0', '9'), 1, MAX_FRACTION));
            }
            here[is_low][is_high] = any_of(b, &list);
        }
        memcpy(behind, here, sizeof behind);
    }
    mf_guide_list list = { 0 };
    bool is_bare = (!low || (!low->is_out && only_zeros(low->fraction))) && !(high && high->is_out && only_zeros(high->fraction));
    if (is_bare) {
        mf_guide_list_add(b, &list, mf_guide_empty(b));
    }
    mf_guide_expr *digits = behind[low != NULL][high != NULL];
    if (digits) {
        mf_guide_list_add(b, &list, mf_guide_seq2(b, mf_guide_text(b, "."), digits));
    }
    return any_of(b, &list);
}

static void add_pair(mf_guide_build *b, mf_guide_list *list, mf_guide_expr *whole, mf_guide_expr *fraction)
{
    if (whole && fraction) {
        mf_guide_list_add(b, list, mf_guide_seq2(b, whole, fraction));
    }
}

/* Magnitudes between two bounds; high NULL = without end. */
static mf_guide_expr *decimal_magnitudes(mf_guide_build *b, const bound *low, const bound *high)
{
    mf_guide_list list = { 0 };
    if (high && high->whole < low->whole) {
        return NULL;
    }
    if (high && high->whole == low->whole) {
        add_pair(b, &list, magnitudes(b, low->whole, low->whole), fractions(b, low, high));
        return any_of(b, &list);
    }
    add_pair(b, &list, magnitudes(b, low->whole, low->whole), fractions(b, low, NULL));
    if (!high || high->whole > low->whole + 1) {
        add_pair(b, &list, magnitudes(b, low->whole + 1, high ? high->whole - 1 : -1), fractions(b, NULL, NULL));
    }
    if (high) {
        add_pair(b, &list, magnitudes(b, high->whole, high->whole), fractions(b, NULL, high));
    }
    return any_of(b, &list);
}

static bound bound_of(const char *text, bool is_out)
{
    const char *point = strchr(text, '.');
    return (bound){ .whole = strtoll(text[0] == '-' ? text + 1 : text, NULL, 10), .fraction = point ? point + 1 : "",
                    .is_out = is_out };
}

static bool is_zero(const bound *x)
{
    return x->whole == 0 && only_zeros(x->fraction);
}

mf_guide_expr *mf_guide_number_range(mf_guide_build *b, const char *least, bool above, const char *most, bool below)
{
    const bound zero = { .fraction = "" };
    bound low = least ? bound_of(least, above) : zero, high = most ? bound_of(most, below) : zero;
    bool low_is_negative = least && least[0] == '-' && !is_zero(&low);
    bool high_is_negative = most && most[0] == '-' && !is_zero(&high);
    mf_guide_list list = { 0 };
    if (!least || low_is_negative) {
        bound from = high_is_negative ? high : (bound){ .fraction = "", .is_out = most && is_zero(&high) && below };
        mf_guide_expr *m = decimal_magnitudes(b, &from, least ? &low : NULL);
        if (m) {
            mf_guide_list_add(b, &list, negative(b, m));
        }
    }
    if (!most || !high_is_negative) {
        mf_guide_expr *m = decimal_magnitudes(b, least && !low_is_negative ? &low : &zero, most ? &high : NULL);
        if (m) {
            mf_guide_list_add(b, &list, m);
        }
    }
    if (list.num == 0) {
        mf_guide_build_fail(b, MF_ERR_INVALID, "no number lies between minimum and maximum");
    }
    return any_of(b, &list);
}
