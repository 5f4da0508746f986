/* report_chart.h - the report's charts as inline SVG: lines over concurrency, changes with their intervals, expert
 * load. */
#ifndef MF_CLI_REPORT_CHART_H
#define MF_CLI_REPORT_CHART_H

#include <stdbool.h>
#include <stdint.h>

#include "cli/report_html.h"

enum { MF_CHART_COLORS = 6 };

typedef struct mf_chart_point {
    double x; /* requests at once; 0 = no limit */
    double y;
    double low, high; /* over rounds; equal to y where there is one */
} mf_chart_point;

typedef struct mf_chart_series {
    const char *name;
    int32_t color; /* 0..MF_CHART_COLORS - 1, and the marker's shape */
    bool dashed;
    mf_chart_point *points;
    int32_t num_points;
} mf_chart_series;

typedef struct mf_line_chart {
    const char *title, *unit, *note;
    const double *x_values; /* ascending, distinct; 0 last */
    int32_t num_x;
    const mf_chart_series *series;
    int32_t num_series;
} mf_line_chart;

void mf_chart_lines(mf_html *html, const mf_line_chart *chart);

typedef struct mf_change {
    double x;                 /* requests at once */
    double change, low, high; /* shares */
    bool has_interval;
    int32_t color;
    const char *name;
} mf_change;

/* A row per change, grouped by x, around a line at zero. */
void mf_chart_changes(mf_html *html, const char *title, const char *note, const mf_change *changes, int32_t count);

/* A small line with its marker, for a legend. */
void mf_chart_key(mf_html *html, int32_t color, bool dashed);

typedef struct mf_heat_row {
    int64_t layer;
    const char *mode;
    const double *routed, *shared; /* counts */
    int32_t num_routed, num_shared;
    double jain;
} mf_heat_row;

void mf_chart_heat(mf_html *html, const mf_heat_row *rows, int32_t num_rows);

#endif
