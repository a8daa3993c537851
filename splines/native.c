/* The inner loops of kan.py: B-spline bases on any knots, and the curves and narrow products made of
   them.

   Compiled once for each spline order and type, by kan.py, for instance with -DORDER=3 -DREAL=float
   -DWHOLE=int32_t -DSIZE=4. Only ORDER + 1 bases of an input differ from zero. They come from the
   local form of the Cox-de Boor recursion (The NURBS Book, algorithms A2.2 and A2.3), for a vector of
   neighbouring features at once: about 1 ns an input on one core. A feature's knots are picked while
   its cell is looked for; looked up afterwards, by a number that differs from lane to lane, they
   would take three times as long.

   Knots are a table, knot by knot: at[m * stride + feature], m from 0 to count + 2 * ORDER, with
   ORDER invented ones on both sides of the grid, and room to read a whole vector from any feature
   on. Bases are numbered from -ORDER likewise: in cell c, between the grid's knots c and c + 1, those
   that differ from zero are c - ORDER to c, and of these only numbers from 0 to n - 1 exist. Where a
   table is "padded" it has room for all, n + 2 * ORDER. */

#include <stdint.h>
#include <string.h>

#define K ORDER
#define UNROLL _Pragma("GCC unroll 16")
#define inline inline __attribute__((always_inline))

/* As wide as the processor's registers: wider vectors compile, but live in memory. */
#if defined __AVX512F__
#define BYTES 64
#elif defined __AVX2__
#define BYTES 32
#else
#define BYTES 16
#endif
#define WIDTH (BYTES / SIZE)

typedef REAL vec __attribute__((vector_size(BYTES), may_alias, aligned(SIZE)));
/* Vectors of WIDTH numbers; `lanes`: whole ones, or -1 for true and 0 for false. */
typedef WHOLE lanes __attribute__((vector_size(BYTES), may_alias, aligned(SIZE)));

typedef uint16_t halves __attribute__((vector_size(2 * WIDTH), may_alias, aligned(2)));
typedef uint32_t bits __attribute__((vector_size(4 * WIDTH)));
typedef float singles __attribute__((vector_size(4 * WIDTH)));

#if WIDTH == 16
#define COUNT ((lanes){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#elif WIDTH == 8
#define COUNT ((lanes){0, 1, 2, 3, 4, 5, 6, 7})
#elif WIDTH == 4
#define COUNT ((lanes){0, 1, 2, 3})
#else
#define COUNT ((lanes){0, 1})
#endif

/* K + 1 neighbours, in one register where their number allows. */
#if K == 0 || K == 1 || K == 3
typedef REAL window __attribute__((vector_size((K + 1) * sizeof(REAL)), may_alias, aligned(sizeof(REAL))));
#endif

enum outside { ZERO, HELD, LINEAR };

struct knots {
  const REAL *at;
  long stride, count; /* count: cells of the grid, those of its extension included */
  long outside;
};

struct matrix {
  void *at;
  long stride; /* numbers from row to row */
  long narrow; /* bfloat16, else REAL */
};

struct local { /* what is known of a vector of inputs */
  lanes cell;
  vec value[K + 1], slope[K + 1];
};

long width(void) { return WIDTH; }

static inline long smaller(long a, long b) { return a < b ? a : b; }

static inline vec load(const REAL *from) { return *(const vec *)from; }

static inline vec only(lanes where, vec value) { return (vec)(where & (lanes)value); }

static inline vec pick(lanes where, vec yes, vec no) {
  return (vec)((where & (lanes)yes) | (~where & (lanes)no));
}

static inline vec from_bfloat16(halves value) {
  return __builtin_convertvector((singles)(__builtin_convertvector(value, bits) << 16), vec);
}

static inline halves to_bfloat16(vec value) {
  const bits b = (bits)__builtin_convertvector(value, singles);
  return __builtin_convertvector((b + 0x7fff + (b >> 16 & 1)) >> 16, halves); /* ties to even */
}

/* What is a few rows ahead in the same columns, which no processor expects, is fetched beforehand. */
static inline void fetch(struct matrix m, long row, long column) {
  __builtin_prefetch((const char *)m.at + (row * m.stride + column) * (m.narrow ? 2 : sizeof(REAL)));
}

/* WIDTH numbers of a row from a column on, zeros from the n-th on. */
static inline vec get(struct matrix m, long row, long column, long n) {
  const REAL *from = (const REAL *)m.at + row * m.stride + column;
  const uint16_t *narrow = (const uint16_t *)m.at + row * m.stride + column;
  if (n >= WIDTH) return m.narrow ? from_bfloat16(*(const halves *)narrow) : *(const vec *)from;
  vec whole = {0};
  halves half = {0};
  if (m.narrow) memcpy(&half, narrow, n * sizeof *narrow);
  else memcpy(&whole, from, n * sizeof *from);
  return m.narrow ? from_bfloat16(half) : whole;
}

static inline void put(struct matrix m, long row, long column, long n, vec value) {
  REAL *to = (REAL *)m.at + row * m.stride + column;
  uint16_t *narrow = (uint16_t *)m.at + row * m.stride + column;
  const halves half = to_bfloat16(value);
  if (n < WIDTH && m.narrow) memcpy(narrow, &half, n * sizeof *narrow);
  else if (n < WIDTH) memcpy(to, &value, n * sizeof *to);
  else if (m.narrow) *(halves *)narrow = half;
  else *(vec *)to = value;
}

/* Cells, bases and their slopes at inputs of neighbouring features from `feature` on. */
static inline struct local evaluate(vec x, long feature, struct knots t) {
  const long first = t.outside == ZERO ? 0 : K, last = t.outside == ZERO ? t.count : t.count - K;
  const REAL *knot = t.at + feature + (first + K) * t.stride;
  const vec low = load(knot), high = load(knot + (last - first) * t.stride);
  struct local b;
  vec near[2 * K + 1]; /* knots c - K + 1 to c + K of cell c */

  b.cell = (lanes){0} + (WHOLE)first;
  UNROLL for (int j = 0; j < 2 * K; j++) near[j] = load(knot + (j + 1 - K) * t.stride);
  for (long m = first + 1; m < last; m++) {
    knot += t.stride;
    /* Knots that repeat the last one begin no cell. */
    const lanes up = (x >= load(knot)) & (load(knot) < high);
    b.cell -= up;
    UNROLL for (int j = 0; j < 2 * K; j++)
      near[j] = pick(up, load(knot + (j + 1 - K) * t.stride), near[j]);
  }

  const vec at = pick(x < low, low, pick(x > high, high, x)); /* NaN stays */
  vec *N = b.value, *D = b.slope, left[K + 1], right[K + 1];
  N[0] = 1 + 0 * at;
  D[0] = (vec){0};
  UNROLL for (int p = 1; p <= K; p++) {
    left[p] = at - near[K - p];
    right[p] = near[K - 1 + p] - at;
    vec saved = {0}, before = {0};
    UNROLL for (int r = 0; r < p; r++) {
      const vec part = N[r] / (right[r + 1] + left[p - r]);
      N[r] = saved + right[r + 1] * part;
      D[r] = (REAL)p * (before - part);
      saved = left[p - r] * part;
      before = part;
    }
    N[p] = saved;
    D[p] = (REAL)p * before;
  }
  const lanes inside = ~((x < low) | (x > high));
  UNROLL for (int j = 0; j <= K; j++) {
    if (t.outside == LINEAR) N[j] += (x - at) * D[j];
    else D[j] = only(inside, D[j]);
    if (t.outside == ZERO) N[j] = only(inside, N[j]);
  }
  return b;
}

/* The bases that exist: K + 1 neighbours out of n also where the window of those that differ from zero
   hangs over either end. `cell` becomes the number of the window's first basis. */
static inline struct local existing(struct local b, struct knots t, long n) {
  if (t.outside != ZERO) { /* no input is ever in a cell of the extension */
    b.cell -= K;
    return b;
  }
  const lanes start = b.cell - K, most = (lanes){0} + (WHOLE)(n - 1 - K);
  lanes to = start & (start >= 0);
  to = (to & (to <= most)) | (most & (to > most));
  const lanes by = start - to;
  struct local moved = {.cell = to};
  UNROLL for (int j = 0; j <= K; j++)
    UNROLL for (int r = 0; r <= K; r++) {
      moved.value[j] = (vec)((lanes)moved.value[j] | (lanes)only(by == j - r, b.value[r]));
      moved.slope[j] = (vec)((lanes)moved.slope[j] | (lanes)only(by == j - r, b.slope[r]));
    }
  return moved;
}

/* to[v * (K + 1) + j] = from[j][v] */
static inline void interleave(const vec *from, REAL *to) {
#if K == 1 || K == 3
  const int half = (K + 1) / 2;
  vec now[K + 1], next[K + 1];
  memcpy(now, from, sizeof now);
  UNROLL for (int round = half; round; round /= 2) {
    UNROLL for (int j = 0; j <= K; j++) { /* alternately a lane of the one and of the other */
      const lanes from_lane = COUNT / 2 + j % 2 * WIDTH / 2 + (COUNT & 1) * WIDTH;
      next[j] = __builtin_shuffle(now[j / 2], now[j / 2 + half], from_lane);
    }
    memcpy(now, next, sizeof now);
  }
  memcpy(to, now, sizeof now);
#else
  for (long v = 0; v < WIDTH; v++)
    for (int j = 0; j <= K; j++) to[v * (K + 1) + j] = ((const REAL *)(from + j))[v];
#endif
}

/* to[j][v] = from[v * (K + 1) + j] */
static inline void separate(const REAL *from, vec *to) {
#if K == 1 || K == 3
  const int half = (K + 1) / 2;
  vec next[K + 1];
  memcpy(to, from, sizeof next);
  UNROLL for (int round = half; round; round /= 2) {
    UNROLL for (int j = 0; j <= K; j++) { /* every other lane of both */
      next[j] = __builtin_shuffle(to[j % half * 2], to[j % half * 2 + 1], 2 * COUNT + j / half);
    }
    memcpy(to, next, sizeof next);
  }
#else
  for (long v = 0; v < WIDTH; v++)
    for (int j = 0; j <= K; j++) ((REAL *)(to + j))[v] = from[v * (K + 1) + j];
#endif
}

static inline void add_window(REAL *to, const REAL *from) {
#if K == 0 || K == 1 || K == 3
  *(window *)to += *(const window *)from;
#else
  for (int j = 0; j <= K; j++) to[j] += from[j];
#endif
}

/* A vector of the sums of WIDTH vectors, which are overwritten. */
static inline vec sums(vec *of) {
  UNROLL for (int half = WIDTH / 2; half; half /= 2)
    UNROLL for (int i = 0; i < half; i++) {
      const lanes same = COUNT + (((COUNT & half) != 0) & WIDTH), other = same ^ half;
      of[i] = __builtin_shuffle(of[i], of[i + half], same) +
              __builtin_shuffle(of[i], of[i + half], other);
    }
  return of[0];
}

/* out[r][f * n + j] = basis j of n at x[r][f] */
void bases(struct matrix *x, long rows, long features, struct knots *knots, struct matrix *out, long n,
           long threads) {
  const struct knots t = *knots;
  const struct matrix in = *x, to = *out;
  const long size = to.narrow ? sizeof(uint16_t) : sizeof(REAL);
#pragma omp parallel for num_threads(threads)
  for (long r = 0; r < rows; r++) {
    char *row = (char *)to.at + r * to.stride * size;
    memset(row, 0, features * n * size);
    for (long f = 0; f < features; f += WIDTH) {
      const long width = smaller(WIDTH, features - f);
      const struct local b = existing(evaluate(get(in, r, f, width), f, t), t, n);
      REAL windows[WIDTH * (K + 1)];
      interleave(b.value, windows);
      if (to.narrow) {
        uint16_t narrow[WIDTH * (K + 1)], *at = (uint16_t *)row + f * n;
        for (int j = 0; j <= K; j++)
          *(halves *)(narrow + j * WIDTH) = to_bfloat16(load(windows + j * WIDTH));
        for (long v = 0; v < width; v++)
          memcpy(at + v * n + b.cell[v], narrow + v * (K + 1), (K + 1) * sizeof *narrow);
      } else {
        REAL *at = (REAL *)row + f * n;
        for (long v = 0; v < width; v++)
          memcpy(at + v * n + b.cell[v], windows + v * (K + 1), (K + 1) * sizeof *windows);
      }
    }
  }
}

/* grad_x[r][f]: the sum over j of grad[r][f * n + j] times the slope of basis j at x[r][f] */
void slopes(struct matrix *x, long rows, long features, struct knots *knots, struct matrix *grad,
            long n, struct matrix *grad_x, long threads) {
  const struct knots t = *knots;
  const struct matrix in = *x, from = *grad, to = *grad_x;
#pragma omp parallel for num_threads(threads)
  for (long r = 0; r < rows; r++)
    for (long f = 0; f < features; f += WIDTH) {
      const long width = smaller(WIDTH, features - f), start = r * from.stride + f * n;
      const struct local b = existing(evaluate(get(in, r, f, width), f, t), t, n);
      REAL windows[WIDTH * (K + 1)] = {0};
      if (from.narrow) {
        uint16_t narrow[WIDTH * (K + 1)] = {0}, *at = (uint16_t *)from.at + start;
        for (long v = 0; v < width; v++)
          memcpy(narrow + v * (K + 1), at + v * n + b.cell[v], (K + 1) * sizeof *narrow);
        for (int j = 0; j <= K; j++)
          *(vec *)(windows + j * WIDTH) = from_bfloat16(*(halves *)(narrow + j * WIDTH));
      } else {
        REAL *at = (REAL *)from.at + start;
        for (long v = 0; v < width; v++)
          memcpy(windows + v * (K + 1), at + v * n + b.cell[v], (K + 1) * sizeof *windows);
      }
      vec g[K + 1], sum = {0};
      separate(windows, g);
      UNROLL for (int j = 0; j <= K; j++) sum += g[j] * b.slope[j];
      put(to, r, f, width, sum);
    }
}

/* Curves, of which few differ (groups of `size` features share one), as polynomials in each cell of
   [low, high], those of the extension included where `outside` is zero. For every cell `table` has
   K + 3 rows that a feature looks into: the knot c where the cell starts, 1 / h for its width h, and
   the curve's coefficients of 1, u, u^2, ..., where u = (x - c) / h; and at the end a row with the
   last knot. `basis` gets the coefficients of the bases, [group][cell][basis][power]. */
void curve_table(const REAL *grid, const REAL *coef, long groups, long size, long n, long outside,
                 REAL *table, long stride, double *basis, long threads) {
  const long first = outside == ZERO ? 0 : K, cells = n + K - 2 * first;
  (void)threads;
  for (long g = 0; g < groups; g++) {
    const REAL *at = grid + g * (n + K + 1);
    for (long c = 0; c <= cells; c++) {
      const long m = first + c;
      REAL row[K + 3] = {at[m]};
      if (c < cells) {
        double N[K + 1][K + 1] = {{1}}, near[2 * K + 2]; /* knots m - K to m + K + 1 */
        for (long i = m - K; i <= m + K + 1; i++)
          near[i - m + K] = i < 0       ? at[0] + i * ((double)at[1] - at[0])
                            : i > n + K ? at[n + K] + (i - n - K) * ((double)at[n + K] - at[n + K - 1])
                                        : at[i];
        const double *knot = near + K, h = knot[1] - knot[0];
        for (int p = 1; p <= K; p++) {
          double saved[K + 1] = {0};
          for (int r = 0; r < p; r++) { /* as in `evaluate`, with polynomials in u for numbers */
            const double right = knot[r + 1] - knot[0], left = knot[0] - knot[r + 1 - p];
            double next[K + 1] = {0};
            for (int i = 0; i < p; i++) {
              const double part = right + left ? N[r][i] / (right + left) : 0;
              saved[i] += right * part;
              saved[i + 1] -= h * part;
              next[i] += left * part;
              next[i + 1] += h * part;
            }
            memcpy(N[r], saved, sizeof saved);
            memcpy(saved, next, sizeof next);
          }
          memcpy(N[p], saved, sizeof saved);
        }
        memcpy(basis + (g * cells + c) * (K + 1) * (K + 1), N, sizeof N);
        row[1] = h ? 1 / h : 0;
        for (int j = 0; j <= K; j++)
          if (m - K + j >= 0 && m - K + j < n)
            for (int p = 0; p <= K; p++) row[2 + p] += coef[g * n + m - K + j] * N[j][p];
      }
      for (int i = 0; i < (c < cells ? K + 3 : 1); i++)
        for (long v = 0; v < size; v++) table[(c * (K + 3) + i) * stride + g * size + v] = row[i];
    }
  }
}

struct curve { /* where a vector of inputs lies on curves */
  lanes cell, inside;
  vec u, beyond, inverse, coef[K + 1]; /* beyond: how far outside [low, high], in widths of the cell */
};

static inline struct curve locate(vec x, long feature, const REAL *table, long stride, long cells) {
  const REAL *row = table + feature;
  struct curve c = {.cell = {0}};
  vec start = load(row);
  const vec low = start, high = load(row + cells * (K + 3) * stride);
  c.inverse = load(row + stride);
  UNROLL for (int p = 0; p <= K; p++) c.coef[p] = load(row + (2 + p) * stride);
  for (long m = 1; m < cells; m++) {
    row += (K + 3) * stride;
    /* Knots that repeat the last one begin no cell. */
    const lanes up = (x >= load(row)) & (load(row) < high);
    c.cell -= up;
    start = pick(up, load(row), start);
    c.inverse = pick(up, load(row + stride), c.inverse);
    UNROLL for (int p = 0; p <= K; p++) c.coef[p] = pick(up, load(row + (2 + p) * stride), c.coef[p]);
  }
  const vec at = pick(x < low, low, pick(x > high, high, x)); /* NaN stays */
  c.inside = ~((x < low) | (x > high));
  c.u = (at - start) * c.inverse;
  c.beyond = (x - at) * c.inverse;
  return c;
}

static inline vec slope_of(struct curve c) { /* by u */
  vec slope = {0};
  UNROLL for (int p = K; p > 0; p--) slope = slope * c.u + (REAL)p * c.coef[p];
  return slope;
}

/* y = base + the curves at x; all (rows, features) */
void curves(struct matrix *x, long rows, long features, const REAL *table, long stride, long cells,
            long outside, struct matrix *base, struct matrix *y, long threads) {
  const struct matrix in = *x, add = *base, out = *y;
#pragma omp parallel for num_threads(threads)
  for (long r = 0; r < rows; r++)
    for (long f = 0; f < features; f += WIDTH) {
      const long width = smaller(WIDTH, features - f);
      const struct curve c = locate(get(in, r, f, width), f, table, stride, cells);
      vec value = {0};
      UNROLL for (int p = K; p >= 0; p--) value = value * c.u + c.coef[p];
      if (outside == LINEAR) value += c.beyond * slope_of(c);
      if (outside == ZERO) value = only(c.inside, value);
      put(out, r, f, width, get(add, r, f, width) + value);
    }
}

/* Gradients of `curves`: grad_x = base + what the curves give, and moments[part][f][cell][p], zero on
   entry, the sum of grad u^p for each part of `most` rows, which give those of the coefficients. The
   parts are added up outside, in one order for any number of threads. */
void curves_backward(struct matrix *x, long rows, long features, const REAL *table, long stride,
                     long cells, long outside, struct matrix *grad, struct matrix *base,
                     struct matrix *grad_x, REAL *moments, long most, long threads) {
  const struct matrix in = *x, from = *grad, add = *base, to = *grad_x;
#pragma omp parallel for num_threads(threads)
  for (long part = 0; part < (rows + most - 1) / most; part++)
    for (long r = part * most; r < smaller(rows, (part + 1) * most); r++)
      for (long f = 0; f < features; f += WIDTH) {
        const long width = smaller(WIDTH, features - f);
        REAL *sums = moments + (part * features + f) * cells * (K + 1);
        const struct curve c = locate(get(in, r, f, width), f, table, stride, cells);
        vec g = get(from, r, f, width), slope = slope_of(c) * c.inverse, power[K + 1];
        if (outside != LINEAR) slope = only(c.inside, slope);
        put(to, r, f, width, get(add, r, f, width) + slope * g);
        if (outside == ZERO) g = only(c.inside, g);
        power[0] = g;
        UNROLL for (int p = 1; p <= K; p++) power[p] = power[p - 1] * c.u;
        if (outside == LINEAR)
          UNROLL for (int p = K; p > 0; p--) power[p] += (REAL)p * c.beyond * power[p - 1];
        REAL windows[WIDTH * (K + 1)];
        interleave(power, windows);
        for (long v = 0; v < width; v++)
          add_window(sums + (v * cells + c.cell[v]) * (K + 1), windows + v * (K + 1));
      }
}

/* One row of `product` and of `product_backward`, for the features of a vector. */
static inline void product_row(struct local b, long width, const vec *table, long padded, long wide,
                               vec *y) {
  for (long q = 0; q < wide; q++) {
    vec sum[K + 1] = {{0}};
    for (long v = 0; v < width; v++) {
      const vec *from = table + (v * padded + b.cell[v]) * wide + q;
      UNROLL for (int j = 0; j <= K; j++) sum[j] += b.value[j][v] * from[j * wide];
    }
    UNROLL for (int j = 0; j <= K; j++) y[q] += sum[j];
  }
}

static inline vec product_row_backward(struct local b, long width, const vec *table, long padded,
                                       long wide, const vec *grad, vec *grad_table) {
  vec dots[WIDTH] = {{0}};
  for (long q = 0; q < wide; q++)
    for (long v = 0; v < width; v++) {
      const long at = (v * padded + b.cell[v]) * wide + q;
      vec slope = {0};
      UNROLL for (int j = 0; j <= K; j++) {
        slope += b.slope[j][v] * table[at + j * wide];
        grad_table[at + j * wide] += b.value[j][v] * grad[q];
      }
      dots[v] += slope * grad[q];
    }
  return sums(dots);
}

/* y[r] = sum over features f and bases j of basis j at x[r][f] times table[f][j], which are `wide`
   vectors; the table is padded. Where outputs are few this is faster than a product of matrices,
   which multiplies by all the zeros. */
void product(struct matrix *x, long rows, long features, struct knots *knots, const vec *table,
             long padded, vec *y, long wide, long threads) {
  const struct knots t = *knots;
  const struct matrix in = *x;
  const long most = 64; /* rows for which a block of the table is kept in the first-level cache */
#pragma omp parallel for num_threads(threads)
  for (long start = 0; start < rows; start += most) {
    const long end = smaller(rows, start + most);
    memset(y + start * wide, 0, (end - start) * wide * sizeof(vec));
    for (long f = 0; f < features; f += WIDTH)
      for (long r = start; r < end; r++) {
        const long width = smaller(WIDTH, features - f);
        fetch(in, r + 4, f);
        const struct local b = evaluate(get(in, r, f, width), f, t);
        const vec *block = table + f * padded * wide;
        if (wide == 1) product_row(b, width, block, padded, 1, y + r);
        else if (wide == 2) product_row(b, width, block, padded, 2, y + r * 2);
        else product_row(b, width, block, padded, wide, y + r * wide);
      }
  }
}

/* Gradients of `product`: grad_x, and grad_table[part], zero on entry, for parts of `most` rows. */
void product_backward(struct matrix *x, long rows, long features, struct knots *knots, const vec *table,
                      long padded, const vec *grad, long wide, struct matrix *grad_x, vec *grad_table,
                      long most, long threads) {
  const struct knots t = *knots;
  const struct matrix in = *x, to = *grad_x;
#pragma omp parallel for collapse(2) num_threads(threads)
  for (long part = 0; part < (rows + most - 1) / most; part++)
    for (long f = 0; f < features; f += WIDTH) {
      const vec *block = table + f * padded * wide;
      vec *grad_block = grad_table + (part * features + f) * padded * wide;
      for (long r = part * most; r < smaller(rows, (part + 1) * most); r++) {
        const long width = smaller(WIDTH, features - f);
        fetch(in, r + 4, f);
        fetch(to, r + 4, f);
        const struct local b = evaluate(get(in, r, f, width), f, t);
        const vec *g = grad + r * wide;
        put(to, r, f, width,
            wide == 1   ? product_row_backward(b, width, block, padded, 1, g, grad_block)
            : wide == 2 ? product_row_backward(b, width, block, padded, 2, g, grad_block)
                        : product_row_backward(b, width, block, padded, wide, g, grad_block));
      }
    }
}

/* out[o][f * n + j] = weight[o][f][j] * scaler[o][f], of `features` of a layer's `stride` features */
static inline void scale_row(const REAL *weight, const REAL *scaler, long features, long n,
                             struct matrix to, long row) {
  REAL block[WIDTH * n];
  for (long f = 0; f < features; f += WIDTH) {
    const long width = smaller(WIDTH, features - f);
    for (long v = 0; v < width; v++)
      for (long j = 0; j < n; j++) block[v * n + j] = weight[(f + v) * n + j] * scaler[f + v];
    for (long i = 0; i < width * n; i += WIDTH)
      put(to, row, f * n + i, width * n - i, load(block + i));
  }
}

void scale(const REAL *weight, const REAL *scaler, long outputs, long features, long stride, long n,
           struct matrix *out, long threads) {
  const struct matrix to = *out;
#pragma omp parallel for num_threads(threads)
  for (long o = 0; o < outputs; o++) {
    const REAL *from = weight + o * stride * n, *by = scaler + o * stride;
    /* The usual n is worth a copy in which the compiler knows it. */
    if (n == 8) scale_row(from, by, features, 8, to, o);
    else scale_row(from, by, features, n, to, o);
  }
}

/* Backward of `scale`: takes the gradient of its result in `grad`, leaves that of weight there. */
static inline void scale_row_backward(const REAL *weight, const REAL *scaler, long features, long n,
                                      REAL *grad, REAL *grad_scaler) {
  for (long f = 0; f < features; f++, weight += n, grad += n) {
    REAL sum = 0, part[16];
    if (n <= 16) { /* products first: so the compiler needs no leave to change the order of a sum */
      for (long j = 0; j < n; j++) part[j] = grad[j] * weight[j];
      for (long j = 0; j < n; j++) sum += part[j];
    } else
      for (long j = 0; j < n; j++) sum += grad[j] * weight[j];
    for (long j = 0; j < n; j++) grad[j] *= scaler[f];
    grad_scaler[f] = sum;
  }
}

void scale_backward(const REAL *weight, const REAL *scaler, long outputs, long features, long stride,
                    long n, REAL *grad, REAL *grad_scaler, long threads) {
#pragma omp parallel for num_threads(threads)
  for (long o = 0; o < outputs; o++) {
    const long edge = o * stride;
    if (n == 8)
      scale_row_backward(weight + edge * 8, scaler + edge, features, 8, grad + edge * 8, grad_scaler + edge);
    else
      scale_row_backward(weight + edge * n, scaler + edge, features, n, grad + edge * n, grad_scaler + edge);
  }
}
