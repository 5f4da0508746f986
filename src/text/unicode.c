/* unicode.c - looking one code point up: see unicode.h. */
#include "text/unicode.h"

enum mf_unicode_category mf_unicode_category_of(uint32_t c)
{
    size_t low = 0, high = mf_unicode_num_runs;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (mf_unicode_runs[middle] >> 8 <= c) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return (enum mf_unicode_category)(mf_unicode_runs[low] & 0xff);
}

bool mf_unicode_in(const mf_char_range *ranges, size_t count, uint32_t c)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (c > ranges[middle].last) {
            low = middle + 1;
        } else if (c < ranges[middle].first) {
            high = middle;
        } else {
            return true;
        }
    }
    return false;
}

bool mf_unicode_is_space(uint32_t c)
{
    return mf_unicode_in(mf_unicode_space, mf_unicode_space_count, c);
}

bool mf_unicode_is_neighbour_word(uint32_t c)
{
    enum mf_unicode_category category = mf_unicode_category_of(c);
    return category <= MF_GC_ND || category == MF_GC_PC ||
           mf_unicode_in(mf_unicode_neighbour_extra, mf_unicode_neighbour_extra_count, c);
}
