/* report_chart.c - see report_chart.h. */
#include "cli/report_chart.h"

#include <math.h>
#include <stdio.h>

/* Drawn at the size that a phone shows them in, so that letters keep their size. */
enum { WIDTH = 344, HEIGHT = 232, LEFT = 44, RIGHT = 14, TOP = 10, BOTTOM = 40 };

static double nice_step(double span, int wanted)
{
    double raw = span / wanted, base = pow(10, floor(log10(raw))), share = raw / base;
    return base * (share <= 1.0001 ? 1 : share <= 2.0001 ? 2 : share <= 2.5001 ? 2.5 : share <= 5.0001 ? 5 : 10);
}

static void format_tick(double value, char *out, size_t size)
{
    if (fabs(value) >= 10000) {
        snprintf(out, size, "%gk", value / 1000);
    } else if (fabs(value) >= 1000) {
        mf_format_figure(value, out, size);
    } else {
        snprintf(out, size, "%g", fabs(value) < 1e-12 ? 0 : value);
    }
}

static void format_x(double x, char *out, size_t size)
{
    if (x > 0) {
        snprintf(out, size, "%g", x);
    } else {
        snprintf(out, size, "all");
    }
}

static void marker(mf_html *h, double x, double y, int32_t color, bool open)
{
    const char *kind = open ? "o" : "p";
    switch (color % 3) {
    case 0:
        mf_html_raw(h, "<circle class=\"%s c%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"%s\"", kind, color, x, y,
                    open ? "3" : "4.5");
        break;
    case 1: {
        double s = open ? 2.8 : 4;
        mf_html_raw(h, "<rect class=\"%s c%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"", kind, color,
                    x - s, y - s, 2 * s, 2 * s);
        break;
    }
    default: {
        double s = open ? 3.6 : 5.2;
        mf_html_raw(h, "<path class=\"%s c%d\" d=\"M%.1f %.1fl%.1f %.1fh%.1fz\"", kind, color, x, y - s, s, 1.75 * s,
                    -2 * s);
        break;
    }
    }
}

void mf_chart_key(mf_html *h, int32_t color, bool dashed)
{
    mf_html_raw(h, "<svg viewBox=\"0 0 30 12\" aria-hidden=\"true\"><path class=\"l%s c%d\" d=\"M1 6h28\"/>",
                dashed ? " d" : "", color);
    marker(h, 15, 6, color, dashed);
    mf_html_raw(h, "/></svg>");
}

/* ---- lines ---- */

typedef struct frame {
    double x_low, x_high, y_high;
    bool by_rank; /* no logarithm of "no limit" */
    const mf_line_chart *chart;
} frame;

static double place_x(const frame *f, double x)
{
    const double inner = WIDTH - LEFT - RIGHT, margin = 14;
    if (f->chart->num_x == 1) {
        return LEFT + inner / 2;
    }
    double share = 0;
    if (f->by_rank) {
        for (int32_t i = 0; i < f->chart->num_x; i++) {
            share = f->chart->x_values[i] == x ? (double)i / (f->chart->num_x - 1) : share;
        }
    } else {
        share = (log(x) - f->x_low) / (f->x_high - f->x_low);
    }
    return LEFT + margin + share * (inner - 2 * margin);
}

/* What lies above (a round that something disturbed) ends at the upper edge. */
static double place_y(const frame *f, double y)
{
    y = y > f->y_high ? f->y_high : y;
    return TOP + (1 - y / f->y_high) * (HEIGHT - TOP - BOTTOM);
}

static void draw_axes(mf_html *h, const frame *f, double step)
{
    char text[32];
    for (int i = 0; i * step <= f->y_high * 1.0001; i++) {
        double y = place_y(f, i * step);
        format_tick(i * step, text, sizeof text);
        mf_html_raw(h, "<path class=\"%s\" d=\"M%d %.1fH%d\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>",
                    i ? "g" : "a", LEFT, y, WIDTH - RIGHT, LEFT - 6, y + 3.8, text);
    }
    double last = -100;
    for (int32_t i = 0; i < f->chart->num_x; i++) {
        double x = place_x(f, f->chart->x_values[i]);
        mf_html_raw(h, "<path class=\"a\" d=\"M%.1f %dv4\"/>", x, HEIGHT - BOTTOM);
        if (x - last < 22) { /* letters would touch */
            continue;
        }
        last = x;
        format_x(f->chart->x_values[i], text, sizeof text);
        mf_html_raw(h, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>", x, HEIGHT - BOTTOM + 17, text);
    }
    mf_html_raw(h, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">requests at once</text>\n",
                (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 6);
}

static void draw_series(mf_html *h, const frame *f, const mf_chart_series *s)
{
    if (s->num_points > 1) {
        mf_html_raw(h, "<path class=\"l%s c%d\" d=\"", s->dashed ? " d" : "", s->color);
        for (int32_t i = 0; i < s->num_points; i++) {
            mf_html_raw(h, "%s%.1f %.1f", i ? "L" : "M", place_x(f, s->points[i].x), place_y(f, s->points[i].y));
        }
        mf_html_raw(h, "\"/>");
    }
    for (int32_t i = 0; i < s->num_points; i++) {
        const mf_chart_point *p = &s->points[i];
        double x = place_x(f, p->x);
        if (p->high > p->low) {
            mf_html_raw(h, "<path class=\"w c%d\" d=\"M%.1f %.1fV%.1f\"/>", s->color, x, place_y(f, p->low),
                        place_y(f, p->high));
        }
    }
    char at[32], value[32], low[32], high[32];
    for (int32_t i = 0; i < s->num_points; i++) {
        const mf_chart_point *p = &s->points[i];
        marker(h, place_x(f, p->x), place_y(f, p->y), s->color, s->dashed);
        format_x(p->x, at, sizeof at);
        mf_format_figure(p->y, value, sizeof value);
        mf_html_raw(h, "><title>");
        mf_html_text(h, s->name);
        mf_html_raw(h, ", %s at once: %s ", at, value);
        mf_html_text(h, f->chart->unit);
        if (p->high > p->low) {
            mf_format_figure(p->low, low, sizeof low);
            mf_format_figure(p->high, high, sizeof high);
            mf_html_raw(h, " (rounds %s to %s)", low, high);
        }
        static const char *const ends[] = { "circle", "rect", "path" };
        mf_html_raw(h, "</title></%s>", ends[s->color % 3]);
    }
    mf_html_raw(h, "\n");
}

static void begin_figure(mf_html *h, const char *title, const char *unit, const char *note)
{
    mf_html_raw(h, "<figure><h3>");
    mf_html_text(h, title);
    mf_html_raw(h, "</h3><figcaption>");
    mf_html_text(h, unit);
    if (note && *note) {
        mf_html_raw(h, "%s", *unit ? "; " : "");
        mf_html_text(h, note);
    }
    mf_html_raw(h, "</figcaption>\n");
}

void mf_chart_lines(mf_html *h, const mf_line_chart *chart)
{
    frame f = { .chart = chart };
    double most = 0;
    for (int32_t s = 0; s < chart->num_series; s++) {
        for (int32_t i = 0; i < chart->series[s].num_points; i++) {
            const mf_chart_point *p = &chart->series[s].points[i];
            most = fmax(most, fmin(p->high, 1.25 * p->y));
        }
    }
    double step = nice_step(most > 0 ? most : 1, 4);
    f.y_high = step * ceil((most > 0 ? most : 1) / step - 1e-9);
    f.by_rank = chart->num_x > 0 && chart->x_values[chart->num_x - 1] <= 0;
    if (!f.by_rank && chart->num_x > 1) {
        f.x_low = log(chart->x_values[0]);
        f.x_high = log(chart->x_values[chart->num_x - 1]);
    }
    begin_figure(h, chart->title, chart->unit, chart->note);
    mf_html_raw(h, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", WIDTH, HEIGHT);
    mf_html_text(h, chart->title);
    mf_html_raw(h, " over requests at once\">\n");
    draw_axes(h, &f, step);
    for (int below = 1; below >= 0; below--) { /* dashed ones lie below, and the first variant on top */
        for (int32_t s = chart->num_series; s-- > 0;) {
            if (chart->series[s].dashed == (below == 1)) {
                draw_series(h, &f, &chart->series[s]);
            }
        }
    }
    mf_html_raw(h, "</svg></figure>\n");
}

/* ---- changes ---- */

void mf_chart_changes(mf_html *h, const char *title, const char *note, const mf_change *changes, int32_t count)
{
    enum { ROW = 19, GAP = 9 };
    double reach = 0.005;
    int32_t groups = 0;
    for (int32_t i = 0; i < count; i++) {
        reach = fmax(reach, fmax(fabs(changes[i].low), fabs(changes[i].high)));
        reach = fmax(reach, fabs(changes[i].change));
        groups += i == 0 || changes[i].x != changes[i - 1].x;
    }
    double step = nice_step(2 * reach * 100, 4) / 100;
    reach = step * ceil(reach / step - 1e-9);
    const double height = TOP + count * ROW + groups * GAP + BOTTOM, inner = WIDTH - LEFT - RIGHT - 12,
                 bottom = height - BOTTOM;
#define X_OF(share) (LEFT + ((share) / reach + 1) / 2 * inner)
    begin_figure(h, title, "", note);
    mf_html_raw(h, "<svg viewBox=\"0 0 %d %.0f\" role=\"img\" aria-label=\"", WIDTH, height);
    mf_html_text(h, title);
    mf_html_raw(h, "\">\n");
    for (double at = -reach; at <= reach * 1.0001; at += step) {
        bool zero = fabs(at) < step / 1000;
        char text[32];
        snprintf(text, sizeof text, "%+g %%", zero ? 0 : round(at * 1e6) / 1e4);
        mf_html_raw(
            h, "<path class=\"%s\" d=\"M%.1f %dV%.1f\"/><text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>",
            zero ? "a" : "g", X_OF(at), TOP, bottom, X_OF(at), bottom + 15, zero ? "0" : text);
    }
    double y = TOP + GAP / 2.0;
    for (int32_t i = 0; i < count; i++) {
        const mf_change *c = &changes[i];
        char at[32], value[64];
        format_x(c->x, at, sizeof at);
        if (i == 0 || c->x != changes[i - 1].x) {
            int32_t last = i;
            while (last + 1 < count && changes[last + 1].x == c->x) {
                last++;
            }
            y += i ? GAP : 0;
            mf_html_raw(h, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>", LEFT - 10,
                        y + (last - i + 1) * ROW / 2.0 + 4, at);
        }
        double middle = y + ROW / 2.0;
        if (c->has_interval) {
            mf_html_raw(h, "<path class=\"w c%d\" d=\"M%.1f %.1fH%.1fM%.1f %.1fv6M%.1f %.1fv6\"/>", c->color,
                        X_OF(c->low), middle, X_OF(c->high), X_OF(c->low), middle - 3, X_OF(c->high), middle - 3);
        }
        marker(h, X_OF(c->change), middle, c->color, false);
        snprintf(value, sizeof value, "%+.2f %%", c->change * 100);
        mf_html_raw(h, "><title>");
        mf_html_text(h, c->name);
        mf_html_raw(h, ", %s at once: %s", at, value);
        if (c->has_interval) {
            mf_html_raw(h, " (95 %% interval %+.2f to %+.2f %%)", c->low * 100, c->high * 100);
        }
        static const char *const ends[] = { "circle", "rect", "path" };
        mf_html_raw(h, "</title></%s>\n", ends[c->color % 3]);
        y += ROW;
    }
    mf_html_raw(
        h, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">change; rows: requests at once</text></svg></figure>\n",
        LEFT + inner / 2, height - 6);
#undef X_OF
}

/* ---- expert load ---- */

static double heat_share(double count, double mean)
{
    double share = mean > 0 ? count / mean / 2 : 0; /* the mean is half way */
    share = share > 1 ? 1 : share;
    return 0.06 + 0.94 * round(share * 16) / 16; /* few values: few bytes */
}

static void heat_key(mf_html *h, double y)
{
    mf_html_raw(
        h, "<text x=\"292\" y=\"%.0f\" text-anchor=\"end\">tokens of an expert, against its layer's mean: 0</text>",
        y + 9);
    for (int i = 0; i <= 8; i++) {
        mf_html_raw(h, "<rect class=\"h\" x=\"%d\" y=\"%.0f\" width=\"14\" height=\"11\" fill-opacity=\"%.2f\"/>",
                    300 + i * 14, y, heat_share(i / 4.0, 1));
    }
    mf_html_raw(h, "<text x=\"432\" y=\"%.0f\">2x and more</text>", y + 9);
    mf_html_raw(h,
                "<rect class=\"m\" x=\"520\" y=\"%.0f\" width=\"14\" height=\"11\"/><text x=\"540\" y=\"%.0f\">shared "
                "slot: every token</text>",
                y, y + 9);
}

void mf_chart_heat(mf_html *h, const mf_heat_row *rows, int32_t num_rows)
{
    enum { PLOT = 720, NAME = 36, JAIN = 56 };
    int32_t most_routed = 1, most_shared = 0;
    for (int32_t r = 0; r < num_rows; r++) {
        most_routed = rows[r].num_routed > most_routed ? rows[r].num_routed : most_routed;
        most_shared = rows[r].num_shared > most_shared ? rows[r].num_shared : most_shared;
    }
    double inner = PLOT - NAME - JAIN - (most_shared ? 8 : 0), cell = inner / (most_routed + most_shared);
    double tall = cell > 22 ? 22 : cell < 9 ? 9 : cell, gap = cell > 6 ? 1.5 : cell > 3 ? 0.5 : 0;
    const bool has_titles = (int64_t)num_rows * most_routed <= 4096;
    double height = 20 + num_rows * tall + 34;
    mf_html_raw(
        h,
        "<div class=\"scroll heat\"><svg viewBox=\"0 0 %d %.0f\" role=\"img\" aria-label=\"expert load per layer\">\n",
        PLOT, height);
    mf_html_raw(h, "<text x=\"%d\" y=\"11\" text-anchor=\"end\">layer</text>", NAME - 6);
    int32_t every = most_routed <= 32 ? (cell > 16 ? 1 : 4) : most_routed <= 128 ? 8 : 32;
    for (int32_t e = 0; e < most_routed; e += every) {
        mf_html_raw(h, "<text x=\"%.1f\" y=\"11\" text-anchor=\"middle\">%d</text>", NAME + (e + 0.5) * cell, e);
    }
    if (most_shared) {
        mf_html_raw(h, "<text x=\"%.1f\" y=\"11\" text-anchor=\"middle\">%s</text>",
                    NAME + 8 + (most_routed + most_shared / 2.0) * cell, most_shared * cell > 36 ? "shared" : "S");
    }
    mf_html_raw(h, "<text x=\"%d\" y=\"11\" text-anchor=\"end\">Jain</text>\n", PLOT - 2);
    for (int32_t r = 0; r < num_rows; r++) {
        const mf_heat_row *row = &rows[r];
        double y = 20 + r * tall, sum = 0;
        for (int32_t e = 0; e < row->num_routed; e++) {
            sum += row->routed[e];
        }
        double mean = row->num_routed ? sum / row->num_routed : 0;
        mf_html_raw(h, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%lld</text>", NAME - 6, y + tall / 2 + 3.8,
                    (long long)row->layer);
        for (int32_t e = 0; e < row->num_routed; e++) {
            mf_html_raw(h,
                        "<rect class=\"h\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill-opacity=\"%.2f\"",
                        NAME + e * cell, y, cell - gap, tall - gap, heat_share(row->routed[e], mean));
            if (has_titles) {
                mf_html_raw(h, "><title>layer %lld, expert %d: %.0f tokens, %.2fx the mean</title></rect>",
                            (long long)row->layer, e, row->routed[e], mean > 0 ? row->routed[e] / mean : 0);
            } else {
                mf_html_raw(h, "/>");
            }
        }
        for (int32_t s = 0; s < row->num_shared; s++) {
            mf_html_raw(h,
                        "<rect class=\"m\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"><title>layer %lld, "
                        "shared slot %d: %.0f tokens",
                        NAME + 8 + (most_routed + s) * cell, y, cell - gap, tall - gap, (long long)row->layer, s,
                        row->shared[s]);
            mf_html_raw(h, ", ");
            mf_html_text(h, row->mode);
            mf_html_raw(h, "</title></rect>");
        }
        mf_html_raw(h, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.2f</text>\n", PLOT - 2, y + tall / 2 + 3.8,
                    row->jain);
    }
    heat_key(h, height - 20);
    mf_html_raw(h, "</svg></div>\n");
}
