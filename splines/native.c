/* The inner loops of kan.py: B-spline bases on any knots, and the curves and narrow products made of
   them.

   Compiled once for each spline order and type, by native.py, for instance with -DORDER=3
   -DREAL=float -DWHOLE=int32_t -DSIZE=4. Compilers without the vectors of GCC and clang, and those
   that are told -DSCALAR, see vectors of one number, in plain C11. Only ORDER + 1 bases of an input
   differ from zero. They come from the local form of the Cox-de Boor recursion (The NURBS Book,
   algorithms A2.2 and A2.3), for a vector of neighbouring features at once: about 1 ns an input on
   one core with AVX-512. A feature's knots are picked while its cell is looked for; looked up
   afterwards, by a number that differs from lane to lane, they would take three times as long.

   Knots are a table, knot by knot: at[m * stride + feature], m from 0 to count + 2 * ORDER, with
   ORDER invented ones on both sides of the grid, and room to read a whole vector from any feature
   on. Bases are numbered from -ORDER likewise: in cell c, between the grid's knots c and c + 1, those
   that differ from zero are c - ORDER to c, and of these only numbers from 0 to n - 1 exist. Where a
   table is "padded" it has room for all, n + 2 * ORDER. */

#include <stdint.h>
#include <string.h>

#define K ORDER

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT
#endif

#if (defined __GNUC__ || defined __clang__) && !defined SCALAR

/* As wide as the processor's registers: wider vectors compile, but live in memory. */
#if defined __AVX512F__
#define BYTES 64
#elif defined __AVX2__
#define BYTES 32
#else
#define BYTES 16
#endif
#define WIDTH (BYTES / SIZE)

#define inline inline __attribute__((always_inline))
#define PREFETCH(address) __builtin_prefetch(address)
#define LANE(value, v) ((value)[v])
#define WHERE(condition) (condition)
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

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
#define WINDOW
typedef REAL window __attribute__((vector_size((K + 1) * sizeof(REAL)), may_alias, aligned(sizeof(REAL))));
#endif

static inline vec only(lanes where, vec value) { return (vec)(where & (lanes)value); }

static inline vec pick(lanes where, vec yes, vec no) {
  return (vec)((where & (lanes)yes) | (~where & (lanes)no));
}

/* |value|: all but the bit of the sign, by which -0 differs from 0. */
static inline vec magnitude(vec value) { return (vec)((lanes)value & ~(lanes)-(vec){0}); }

static inline lanes whole(vec value) { return __builtin_convertvector(value, lanes); }

static inline vec number(lanes value) { return __builtin_convertvector(value, vec); }

static inline vec from_bfloat16(halves value) {
  return __builtin_convertvector((singles)(__builtin_convertvector(value, bits) << 16), vec);
}

static inline halves to_bfloat16(vec value) {
  const bits b = (bits)__builtin_convertvector(value, singles);
  return __builtin_convertvector((b + 0x7fff + (b >> 16 & 1)) >> 16, halves); /* ties to even */
}

/* Lane v of the result is number from[v] of a's and b's lanes, counted on. */
static inline vec shuffle(vec a, vec b, lanes from) {
#ifdef __clang__ /* has such a builtin for literal numbers only, and finds out that these are known */
  vec to;
  UNROLL for (int v = 0; v < WIDTH; v++) to[v] = from[v] < WIDTH ? a[from[v]] : b[from[v] - WIDTH];
  return to;
#else
  return __builtin_shuffle(a, b, from);
#endif
}

#else /* a vector is one number */

#define WIDTH 1
#ifdef _MSC_VER
#define inline __forceinline
#endif
#define PREFETCH(address) ((void)0)
#define LANE(value, v) (value)
#define WHERE(condition) (-(lanes)(condition))
#define UNROLL

typedef REAL vec;
typedef WHOLE lanes;
typedef uint16_t halves;

static inline vec only(lanes where, vec value) { return where ? value : 0; }

static inline vec pick(lanes where, vec yes, vec no) { return where ? yes : no; }

static inline vec magnitude(vec value) { return value < 0 ? -value : value; }

static inline lanes whole(vec value) { return (lanes)value; }

static inline vec number(lanes value) { return (vec)value; }

static inline vec from_bfloat16(halves value) {
  const uint32_t b = (uint32_t)value << 16;
  float single;
  memcpy(&single, &b, sizeof b);
  return single;
}

static inline halves to_bfloat16(vec value) {
  const float single = (float)value;
  uint32_t b;
  memcpy(&b, &single, sizeof b);
  return (halves)((b + 0x7fff + (b >> 16 & 1)) >> 16); /* ties to even */
}

#endif

enum outside { ZERO, HELD, LINEAR };

struct knots {
  const REAL *at;
  int64_t stride, count; /* count: cells of the grid, those of its extension included */
  int64_t outside, even; /* even: all cells are 1 / at[(count + 2 * ORDER + 1) * stride] wide */
};

struct matrix {
  void *at;
  int64_t stride; /* numbers from row to row */
  int64_t narrow; /* bfloat16, else REAL */
};

struct local { /* what is known of a vector of inputs */
  lanes cell;
  vec value[K + 1], slope[K + 1];
};

EXPORT int64_t width(void) { return WIDTH; }

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static inline vec load(const REAL *from) { return *(const vec *)from; }

/* What comes soon, though no processor expects it, is fetched beforehand: the same columns a few rows
   ahead, or what follows in one of many rows. */
static inline void fetch(struct matrix m, int64_t row, int64_t column) {
  PREFETCH((const char *)m.at + (row * m.stride + column) * (m.narrow ? 2 : sizeof(REAL)));
  (void)m, (void)row, (void)column; /* where PREFETCH does nothing */
}

/* WIDTH numbers of a row from a column on, zeros from the n-th on. */
static inline vec get(struct matrix m, int64_t row, int64_t column, int64_t n) {
  const REAL *from = (const REAL *)m.at + row * m.stride + column;
  const uint16_t *narrow = (const uint16_t *)m.at + row * m.stride + column;
  if (n >= WIDTH) return m.narrow ? from_bfloat16(*(const halves *)narrow) : *(const vec *)from;
  vec whole = {0};
  halves half = {0};
  if (m.narrow) memcpy(&half, narrow, n * sizeof *narrow);
  else memcpy(&whole, from, n * sizeof *from);
  return m.narrow ? from_bfloat16(half) : whole;
}

static inline void put(struct matrix m, int64_t row, int64_t column, int64_t n, vec value) {
  REAL *to = (REAL *)m.at + row * m.stride + column;
  uint16_t *narrow = (uint16_t *)m.at + row * m.stride + column;
  const halves half = to_bfloat16(value);
  if (n < WIDTH && m.narrow) memcpy(narrow, &half, n * sizeof *narrow);
  else if (n < WIDTH) memcpy(to, &value, n * sizeof *to);
  else if (m.narrow) *(halves *)narrow = half;
  else *(vec *)to = value;
}

/* x, or the end of [low, high] that it lies beyond; NaN stays. */
static inline vec held(vec x, vec low, vec high) {
  return pick(WHERE(x < low), low, pick(WHERE(x > high), high, x));
}

/* What was found at `at`, the nearest within the grid's ends, as it goes on to x. */
static inline struct local continued(struct local b, vec x, vec at, int64_t outside) {
  const lanes inside = ~WHERE((x < at) | (x > at)); /* of NaN, too */
  UNROLL for (int j = 0; j <= K; j++) {
    if (outside == LINEAR) b.value[j] += (x - at) * b.slope[j];
    else b.slope[j] = only(inside, b.slope[j]);
    if (outside == ZERO) b.value[j] = only(inside, b.value[j]);
  }
  return b;
}

/* As `evaluate` on even knots, where no cell is looked for and nothing divided. */
static inline struct local evaluate_even(vec x, int64_t feature, struct knots t) {
  const int64_t first = t.outside == ZERO ? 0 : K, last = t.outside == ZERO ? t.count : t.count - K;
  const REAL *knot = t.at + feature + (first + K) * t.stride;
  const vec low = load(knot), high = load(knot + (last - first) * t.stride);
  const vec inverse = load(t.at + feature + (t.count + 2 * K + 1) * t.stride);
  const vec at = held(x, low, high), place = (at - low) * inverse;
  struct local b;
  const lanes most = (lanes){0} + (WHOLE)(last - first - 1);
  lanes cell = whole(only(WHERE(place >= 0), place)); /* NaN: the first */
  cell = (cell & WHERE(cell < most)) | (most & ~WHERE(cell < most));
  b.cell = cell + (WHOLE)first;

  const vec u = place - number(cell);
  vec *N = b.value, *D = b.slope;
  N[0] = 1 + 0 * at;
  D[0] = (vec){0};
  UNROLL for (int p = 1; p <= K; p++) {
    vec saved = {0}, before = {0};
    UNROLL for (int r = 0; r < p; r++) {
      const vec part = N[r] * (REAL)(1.0 / p);
      N[r] = saved + ((REAL)(r + 1) - u) * part;
      D[r] = (REAL)p * (before - part);
      saved = (u + (REAL)(p - r - 1)) * part;
      before = part;
    }
    N[p] = saved;
    D[p] = (REAL)p * before;
  }
  UNROLL for (int j = 0; j <= K; j++) D[j] *= inverse;
  return continued(b, x, at, t.outside);
}

/* Cells, bases and their slopes at inputs of neighbouring features from `feature` on. */
static inline struct local evaluate(vec x, int64_t feature, struct knots t) {
  if (t.even) return evaluate_even(x, feature, t);
  const int64_t first = t.outside == ZERO ? 0 : K, last = t.outside == ZERO ? t.count : t.count - K;
  const REAL *knot = t.at + feature + (first + K) * t.stride;
  const vec low = load(knot), high = load(knot + (last - first) * t.stride);
  struct local b;
  vec near[2 * K + 1]; /* knots c - K + 1 to c + K of cell c */

  b.cell = (lanes){0} + (WHOLE)first;
  UNROLL for (int j = 0; j < 2 * K; j++) near[j] = load(knot + (j + 1 - K) * t.stride);
  for (int64_t m = first + 1; m < last; m++) {
    knot += t.stride;
    /* Knots that repeat the last one begin no cell. */
    const lanes up = WHERE((x >= load(knot)) & (load(knot) < high));
    b.cell -= up;
    UNROLL for (int j = 0; j < 2 * K; j++)
      near[j] = pick(up, load(knot + (j + 1 - K) * t.stride), near[j]);
  }

  const vec at = held(x, low, high);
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
  return continued(b, x, at, t.outside);
}

/* The bases that exist: K + 1 neighbours out of n also where the window of those that differ from zero
   hangs over either end. `cell` becomes the number of the window's first basis. */
static inline struct local existing(struct local b, struct knots t, int64_t n) {
  if (t.outside != ZERO) { /* no input is ever in a cell of the extension */
    b.cell -= K;
    return b;
  }
  const lanes start = b.cell - K, most = (lanes){0} + (WHOLE)(n - 1 - K);
  lanes to = start & WHERE(start >= 0);
  to = (to & WHERE(to <= most)) | (most & WHERE(to > most));
  const lanes by = start - to;
  struct local moved = {.cell = to};
  UNROLL for (int j = 0; j <= K; j++)
    UNROLL for (int r = 0; r <= K; r++) {
      moved.value[j] = pick(WHERE(by == j - r), b.value[r], moved.value[j]);
      moved.slope[j] = pick(WHERE(by == j - r), b.slope[r], moved.slope[j]);
    }
  return moved;
}

/* to[v * (K + 1) + j] = from[j][v] */
static inline void interleave(const vec *from, REAL *to) {
#if WIDTH > 1 && (K == 1 || K == 3)
  const int half = (K + 1) / 2;
  vec now[K + 1], next[K + 1];
  memcpy(now, from, sizeof now);
  UNROLL for (int round = half; round; round /= 2) {
    UNROLL for (int j = 0; j <= K; j++) { /* alternately a lane of the one and of the other */
      const lanes from_lane = COUNT / 2 + j % 2 * WIDTH / 2 + (COUNT & 1) * WIDTH;
      next[j] = shuffle(now[j / 2], now[j / 2 + half], from_lane);
    }
    memcpy(now, next, sizeof now);
  }
  memcpy(to, now, sizeof now);
#else
  for (int64_t v = 0; v < WIDTH; v++)
    for (int j = 0; j <= K; j++) to[v * (K + 1) + j] = ((const REAL *)(from + j))[v];
#endif
}

/* to[j][v] = from[v * (K + 1) + j] */
static inline void separate(const REAL *from, vec *to) {
#if WIDTH > 1 && (K == 1 || K == 3)
  const int half = (K + 1) / 2;
  vec next[K + 1];
  memcpy(to, from, sizeof next);
  UNROLL for (int round = half; round; round /= 2) {
    UNROLL for (int j = 0; j <= K; j++) { /* every other lane of both */
      next[j] = shuffle(to[j % half * 2], to[j % half * 2 + 1], 2 * COUNT + j / half);
    }
    memcpy(to, next, sizeof next);
  }
#else
  for (int64_t v = 0; v < WIDTH; v++)
    for (int j = 0; j <= K; j++) ((REAL *)(to + j))[v] = from[v * (K + 1) + j];
#endif
}

static inline void add_window(REAL *to, const REAL *from) {
#ifdef WINDOW
  *(window *)to += *(const window *)from;
#else
  for (int j = 0; j <= K; j++) to[j] += from[j];
#endif
}

/* A vector of the sums of WIDTH vectors, which are overwritten. */
static inline vec sums(vec *of) {
#if WIDTH > 1
  UNROLL for (int half = WIDTH / 2; half; half /= 2)
    UNROLL for (int i = 0; i < half; i++) {
      const lanes same = COUNT + (((COUNT & half) != 0) & WIDTH), other = same ^ half;
      of[i] = shuffle(of[i], of[i + half], same) + shuffle(of[i], of[i + half], other);
    }
#endif
  return of[0];
}

/* out[r][f * n + j] = basis j of n at x[r][f] */
EXPORT void bases(struct matrix *x, int64_t rows, int64_t features, struct knots *knots, struct
                  matrix *out, int64_t n, int64_t threads) {
  const struct knots t = *knots;
  const struct matrix in = *x, to = *out;
  const int64_t size = to.narrow ? sizeof(uint16_t) : sizeof(REAL);
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r++) {
    char *row = (char *)to.at + r * to.stride * size;
    memset(row, 0, features * n * size);
    for (int64_t f = 0; f < features; f += WIDTH) {
      const int64_t width = smaller(WIDTH, features - f);
      const struct local b = existing(evaluate(get(in, r, f, width), f, t), t, n);
      REAL windows[WIDTH * (K + 1)];
      interleave(b.value, windows);
      if (to.narrow) {
        uint16_t narrow[WIDTH * (K + 1)], *at = (uint16_t *)row + f * n;
        for (int j = 0; j <= K; j++)
          *(halves *)(narrow + j * WIDTH) = to_bfloat16(load(windows + j * WIDTH));
        for (int64_t v = 0; v < width; v++)
          memcpy(at + v * n + LANE(b.cell, v), narrow + v * (K + 1), (K + 1) * sizeof *narrow);
      } else {
        REAL *at = (REAL *)row + f * n;
        for (int64_t v = 0; v < width; v++)
          memcpy(at + v * n + LANE(b.cell, v), windows + v * (K + 1), (K + 1) * sizeof *windows);
      }
    }
  }
}

/* grad_x[r][f]: the sum over j of grad[r][f * n + j] times the slope of basis j at x[r][f] */
EXPORT void slopes(struct matrix *x, int64_t rows, int64_t features, struct knots *knots, struct
                   matrix *grad, int64_t n, struct matrix *grad_x, int64_t threads) {
  const struct knots t = *knots;
  const struct matrix in = *x, from = *grad, to = *grad_x;
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t f = 0; f < features; f += WIDTH) {
      const int64_t width = smaller(WIDTH, features - f), start = r * from.stride + f * n;
      const struct local b = existing(evaluate(get(in, r, f, width), f, t), t, n);
      REAL windows[WIDTH * (K + 1)] = {0};
      if (from.narrow) {
        uint16_t narrow[WIDTH * (K + 1)] = {0}, *at = (uint16_t *)from.at + start;
        for (int64_t v = 0; v < width; v++)
          memcpy(narrow + v * (K + 1), at + v * n + LANE(b.cell, v), (K + 1) * sizeof *narrow);
        for (int j = 0; j <= K; j++)
          *(vec *)(windows + j * WIDTH) = from_bfloat16(*(halves *)(narrow + j * WIDTH));
      } else {
        REAL *at = (REAL *)from.at + start;
        for (int64_t v = 0; v < width; v++)
          memcpy(windows + v * (K + 1), at + v * n + LANE(b.cell, v), (K + 1) * sizeof *windows);
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
EXPORT void curve_table(const REAL *grid, const REAL *coef, int64_t groups, int64_t size, int64_t n,
                        int64_t outside, REAL *table, int64_t stride, double *basis, int64_t
                        threads) {
  const int64_t first = outside == ZERO ? 0 : K, cells = n + K - 2 * first;
  (void)threads;
  for (int64_t g = 0; g < groups; g++) {
    const REAL *at = grid + g * (n + K + 1);
    for (int64_t c = 0; c <= cells; c++) {
      const int64_t m = first + c;
      REAL row[K + 3] = {at[m]};
      if (c < cells) {
        double N[K + 1][K + 1] = {{1}}, near[2 * K + 2]; /* knots m - K to m + K + 1 */
        for (int64_t i = m - K; i <= m + K + 1; i++)
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
        for (int64_t v = 0; v < size; v++) table[(c * (K + 3) + i) * stride + g * size + v] = row[i];
    }
  }
}

struct curve { /* where a vector of inputs lies on curves */
  lanes cell, inside;
  vec u, beyond, inverse, coef[K + 1]; /* beyond: how far outside [low, high], in widths of the cell */
};

static inline struct curve locate(vec x, int64_t feature, const REAL *table, int64_t stride, int64_t
                                  cells) {
  const REAL *row = table + feature;
  struct curve c;
  c.cell = (lanes){0};
  vec start = load(row);
  const vec low = start, high = load(row + cells * (K + 3) * stride);
  c.inverse = load(row + stride);
  UNROLL for (int p = 0; p <= K; p++) c.coef[p] = load(row + (2 + p) * stride);
  for (int64_t m = 1; m < cells; m++) {
    row += (K + 3) * stride;
    /* Knots that repeat the last one begin no cell. */
    const lanes up = WHERE((x >= load(row)) & (load(row) < high));
    c.cell -= up;
    start = pick(up, load(row), start);
    c.inverse = pick(up, load(row + stride), c.inverse);
    UNROLL for (int p = 0; p <= K; p++) c.coef[p] = pick(up, load(row + (2 + p) * stride), c.coef[p]);
  }
  const vec at = held(x, low, high);
  c.inside = ~WHERE((x < low) | (x > high));
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
EXPORT void curves(struct matrix *x, int64_t rows, int64_t features, const REAL *table, int64_t
                   stride, int64_t cells, int64_t outside, struct matrix *base, struct matrix *y,
                   int64_t threads) {
  const struct matrix in = *x, add = *base, out = *y;
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t f = 0; f < features; f += WIDTH) {
      const int64_t width = smaller(WIDTH, features - f);
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
EXPORT void curves_backward(struct matrix *x, int64_t rows, int64_t features, const REAL *table,
                            int64_t stride, int64_t cells, int64_t outside, struct matrix *grad,
                            struct matrix *base, struct matrix *grad_x, REAL *moments, int64_t most,
                            int64_t threads) {
  const struct matrix in = *x, from = *grad, add = *base, to = *grad_x;
#pragma omp parallel for num_threads(threads)
  for (int64_t part = 0; part < (rows + most - 1) / most; part++)
    for (int64_t r = part * most; r < smaller(rows, (part + 1) * most); r++)
      for (int64_t f = 0; f < features; f += WIDTH) {
        const int64_t width = smaller(WIDTH, features - f);
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
        for (int64_t v = 0; v < width; v++)
          add_window(sums + (v * cells + LANE(c.cell, v)) * (K + 1), windows + v * (K + 1));
      }
}

#if K == 3 && SIZE == 4

/* The usual curves: cubics on 5 even cells, whatever their number. In units of a cell from the
   middle of the grid a curve is the polynomial of the middle cell, c_0 to c_3, and what each knot
   further out adds, jump times (|v| - 1/2)^3 or (|v| - 3/2)^3 where that is positive, on its side: no
   cell to look for. These are the rows of `table`. */
enum activation { GIVEN, IDENTITY, GELU, GELU_TANH, SILU };

enum {
  INVERSE, SHIFT, /* v = x / width of a cell + shift */
  C_0, C_1, C_2, C_3, TWICE_C_2, THRICE_C_3,
  RIGHT, LEFT = RIGHT + 2, /* the jumps */
  END_RIGHT = LEFT + 2, END_LEFT /* the slopes at the grid's ends */
};

enum { ROWS = END_LEFT + 1 };

/* Pieces as sums of a curve's 8 coefficients; the jumps right, then left. */
static const double pieces[8][8] = {
  {0, 0, 1 / 48., 23 / 48., 23 / 48., 1 / 48., 0, 0},
  {0, 0, -1 / 8., -5 / 8., 5 / 8., 1 / 8., 0, 0},
  {0, 0, 1 / 4., -1 / 4., -1 / 4., 1 / 4., 0, 0},
  {0, 0, -1 / 6., 1 / 2., -1 / 2., 1 / 6., 0, 0},
  {0, 0, 1 / 6., -2 / 3., 1, -2 / 3., 1 / 6., 0},
  {0, 0, 0, 1 / 6., -2 / 3., 1, -2 / 3., 1 / 6.},
  {0, 1 / 6., -2 / 3., 1, -2 / 3., 1 / 6., 0, 0},
  {1 / 6., -2 / 3., 1, -2 / 3., 1 / 6., 0, 0, 0},
};

/* Fills `table` for groups of `size` features, of which each has 12 knots and 8 coefficients. */
EXPORT void even_table(const REAL *grid, const REAL *coef, int64_t groups, int64_t size, REAL *table,
                       int64_t stride, int64_t threads) {
  (void)threads;
  for (int64_t g = 0; g < groups; g++, grid += 12, coef += 8) {
    const double low = grid[3], high = grid[8], inverse = 5 / (high - low);
    double c[8] = {0};
    for (int i = 0; i < 8; i++)
      for (int j = 0; j < 8; j++) c[i] += pieces[i][j] * coef[j];
    /* |v| = 2.5 lies 2 beyond the one knot and 1 beyond the other. */
    const double middle = c[1] + 3 * 6.25 * c[3], tilt = 5 * c[2];
    const REAL row[ROWS] = {inverse, -inverse * (low + high) / 2, c[0], c[1], c[2], c[3], 2 * c[2],
                            3 * c[3], c[4], c[5], c[6], c[7], middle + tilt + 3 * (4 * c[4] + c[5]),
                            middle - tilt - 3 * (4 * c[6] + c[7])};
    for (int i = 0; i < ROWS; i++)
      for (int64_t v = 0; v < size; v++) table[i * stride + g * size + v] = row[i];
  }
}

/* grad[g][j]: that of the coefficients, from the sums that `even_curves_backward` leaves. */
EXPORT void even_coefficients(const REAL *sums, int64_t parts, int64_t stride, int64_t groups, int64_t
                              size, REAL *grad, int64_t threads) {
  (void)threads;
  for (int64_t g = 0; g < groups; g++) {
    double of[8] = {0}, to[8] = {0};
    for (int64_t part = 0; part < parts; part++)
      for (int i = 0; i < 8; i++)
        for (int64_t v = 0; v < size; v++) of[i] += sums[(part * 8 + i) * stride + g * size + v];
    for (int i = 0; i < 8; i++)
      for (int j = 0; j < 8; j++) to[j] += pieces[i][j] * of[i];
    for (int j = 0; j < 8; j++) grad[g * 8 + j] = (REAL)to[j];
  }
}

struct piece { /* where a vector of inputs lies, and on what */
  vec w, beyond, q[2], part[2]; /* w: v within the grid; beyond: what v - w counts for; q: how far */
  lanes right, inside;          /* |w| lies beyond a knot; part: its square times the jump there */
};

static inline struct piece piece_of(vec x, const vec *row, int64_t outside) {
  const vec v = x * row[INVERSE] + row[SHIFT];
  struct piece at = {.w = held(v, (vec){0} - 2.5f, (vec){0} + 2.5f), .right = WHERE(v > 0)};
  at.inside = WHERE(v == at.w);
  if (outside == LINEAR) at.beyond = v - at.w;
  UNROLL for (int i = 0; i < 2; i++) {
    const vec q = magnitude(at.w) - (i + 0.5f);
    at.q[i] = only(WHERE(q > 0), q);
    at.part[i] = at.q[i] * at.q[i] * pick(at.right, row[RIGHT + i], row[LEFT + i]);
  }
  return at;
}

static inline vec value_of(struct piece at, const vec *row) {
  vec y = row[C_2] + at.w * row[C_3];
  y = row[C_1] + at.w * y;
  y = row[C_0] + at.w * y;
  y += at.part[0] * at.q[0] + at.part[1] * at.q[1];
  return y + at.beyond * pick(at.right, row[END_RIGHT], row[END_LEFT]);
}

/* By x. */
static inline vec slope_on(struct piece at, const vec *row, int64_t outside) {
  const vec three = pick(at.right, (vec){0} + 3, (vec){0} - 3);
  vec slope = row[TWICE_C_2] + at.w * row[THRICE_C_3];
  slope = row[C_1] + at.w * slope + three * (at.part[0] + at.part[1]);
  return (outside == LINEAR ? slope : only(at.inside, slope)) * row[INVERSE];
}

/* sum[i] += what the i-th of c_0 to c_3 and of the jumps right and left get of g. Beyond the ends powers
   go on with their slopes: w^n as w^(n - 1) (w + n (v - w)). */
static inline void add_moments(struct piece at, vec g, vec *sum) {
  const vec gw = g * at.w, on = at.w + at.beyond, side[2] = {only(at.right, g), only(~at.right, g)};
  sum[0] += g;
  sum[1] += g * on;
  sum[2] += gw * (on + at.beyond);
  sum[3] += gw * at.w * (on + at.beyond + at.beyond);
  UNROLL for (int i = 0; i < 2; i++) {
    const vec far = at.q[i] * at.q[i] * (at.q[i] + 3 * magnitude(at.beyond));
    sum[4 + i] += side[0] * far;
    sum[6 + i] += side[1] * far;
  }
}

/* e^x: 2^n times a polynomial, for x of any size. */
static inline vec exponential(vec x) {
  x = held(x, (vec){0} - 87, (vec){0} + 88);
  const vec n = number(whole(x * 1.44269504f + pick(WHERE(x < 0), (vec){0} - 0.5f, (vec){0} + 0.5f)));
  const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  const vec y = 1 + r + r * r * (0.5f + r * (0.166666657f + r * (0.0416665795f + r * (0.00833345073f +
                                                               r * (0.00139819984f + r * 0.000198756912f)))));
  const lanes power = (whole(n) + 127) << 23;
  vec two;
  memcpy(&two, &power, sizeof two);
  return y * two;
}

/* The base function at x, and its slope. */
static inline void activate(vec x, int64_t activation, vec *value, vec *slope) {
  if (activation == GELU) { /* x times the normal distribution, whose tail e^(-x^2 / 2) makes */
    const vec d = magnitude(x), e = exponential(-0.5f * x * x), t = 1 / (1 + 0.318198052f * d);
    /* erfc(z) e^(z^2) by t = 1 / (1 + 0.45 z), to 4e-9 where the tail matters */
    const vec tail = 0.5f * e * t * (0.258338968f + t * (0.206047735f + t * (0.444041718f + t * (-0.348470583f + t * (0.831301049f + t * (-0.481138487f + t * 0.0898795972f))))));
    const vec below = pick(WHERE(x < 0), tail, 1 - tail);
    *value = x * below;
    *slope = below + 0.398942280f * x * e;
  } else if (activation == GELU_TANH || activation == SILU) {
    vec inner = x, rise = (vec){0} + 1;
    if (activation == GELU_TANH) {
      inner = 1.59576912f * (x + 0.044715f * x * x * x);
      rise = 1.59576912f * (1 + 0.134145f * x * x);
    }
    const vec s = 1 / (1 + exponential(-inner));
    *value = x * s;
    *slope = s + x * s * (1 - s) * rise;
  } else {
    *value = x;
    *slope = (vec){0} + 1;
  }
}

/* What is known of a vector of features stays at hand for so many rows; tables and sums of so many
   features stay in the second-level cache. AHEAD: numbers, at which rows are fetched beforehand. */
enum { TILE = 16, BLOCK = 32 * WIDTH, AHEAD = 4 * WIDTH };

struct even { /* a call: y = base function + curves at x; all (rows, features) */
  struct matrix x, base, grad, grad_x, y;
  const REAL *table;
  int64_t stride, outside, activation, again;
};

static inline void base_at(struct even of, vec x, int64_t r, int64_t f, int64_t width, vec *value,
                           vec *slope) {
  *slope = (vec){0};
  if (of.activation == GIVEN) *value = get(of.base, r, f, width);
  else activate(x, of.activation, value, slope);
}

static inline void even_tile(struct even of, int64_t start, int64_t end, int64_t f, int64_t width) {
  vec row[ROWS], value, slope;
  UNROLL for (int i = 0; i < ROWS; i++) row[i] = load(of.table + i * of.stride + f);
  for (int64_t r = start; r < end; r++) {
    fetch(of.x, r, f + AHEAD);
    fetch(of.y, r, f + AHEAD);
    const vec x = get(of.x, r, f, width);
    base_at(of, x, r, f, width, &value, &slope);
    put(of.y, r, f, width, value + value_of(piece_of(x, row, of.outside), row));
  }
}

static inline void even_tile_backward(struct even of, int64_t start, int64_t end, int64_t f, int64_t
                                      width, REAL *sums) {
  vec row[ROWS], sum[8], value, slope;
  UNROLL for (int i = 0; i < ROWS; i++) row[i] = load(of.table + i * of.stride + f);
  UNROLL for (int i = 0; i < 8; i++) sum[i] = load(sums + i * of.stride + f);
  for (int64_t r = start; r < end; r++) {
    fetch(of.x, r, f + AHEAD);
    fetch(of.grad, r, f + AHEAD);
    fetch(of.grad_x, r, f + AHEAD);
    const vec x = get(of.x, r, f, width), g = get(of.grad, r, f, width);
    const struct piece on = piece_of(x, row, of.outside);
    base_at(of, x, r, f, width, &value, &slope);
    put(of.grad_x, r, f, width, g * (slope_on(on, row, of.outside) + slope));
    if (of.again) put(of.y, r, f, width, value + value_of(on, row));
    add_moments(on, g, sum);
  }
  UNROLL for (int i = 0; i < 8; i++) *(vec *)(sums + i * of.stride + f) = sum[i];
}

/* Where torch has computed the base function, it is at `base`. */
EXPORT void even_curves(struct matrix *x, int64_t rows, int64_t features, const REAL *table, int64_t
                        stride, int64_t outside, int64_t activation, struct matrix *base, struct
                        matrix *y, int64_t threads) {
  const struct even of = {.x = *x, .base = *base, .y = *y, .table = table, .stride = stride,
                          .outside = outside, .activation = activation};
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r += TILE)
    for (int64_t f = 0; f < features; f += WIDTH) {
      const int64_t end = smaller(rows, r + TILE);
      if (features - f >= WIDTH) even_tile(of, r, end, f, WIDTH); /* the compiler knows a whole vector */
      else even_tile(of, r, end, f, features - f);
    }
}

/* Gradients of `even_curves`: grad_x, without that of a base function that torch has computed, and
   y once more where it is wanted `again`; sums[part][8][features], zero on entry and `stride` long,
   get those of the pieces for each part of `most` rows. */
EXPORT void even_curves_backward(struct matrix *x, int64_t rows, int64_t features, const REAL *table,
                                 int64_t stride, int64_t outside, int64_t activation, struct matrix
                                 *base, struct matrix *grad, struct matrix *grad_x, int64_t again,
                                 struct matrix *y, REAL *sums, int64_t most, int64_t threads) {
  const struct even of = {*x, *base, *grad, *grad_x, *y, table, stride, outside, activation, again};
#pragma omp parallel for collapse(2) num_threads(threads)
  for (int64_t part = 0; part < (rows + most - 1) / most; part++)
    for (int64_t block = 0; block < features; block += BLOCK)
      for (int64_t r = part * most; r < smaller(rows, (part + 1) * most); r += TILE)
        for (int64_t f = block; f < smaller(features, block + BLOCK); f += WIDTH) {
          const int64_t end = smaller(smaller(rows, (part + 1) * most), r + TILE);
          REAL *to = sums + part * 8 * stride;
          if (features - f >= WIDTH) even_tile_backward(of, r, end, f, WIDTH, to);
          else even_tile_backward(of, r, end, f, features - f, to);
        }
}

#endif

/* One row of `product` and of `product_backward`, for the features of a vector. */
static inline void product_row(struct local b, int64_t width, const vec *table, int64_t padded,
                               int64_t wide, vec *y) {
  for (int64_t q = 0; q < wide; q++) {
    vec sum[K + 1];
    memset(sum, 0, sizeof sum);
    for (int64_t v = 0; v < width; v++) {
      const vec *from = table + (v * padded + LANE(b.cell, v)) * wide + q;
      UNROLL for (int j = 0; j <= K; j++) sum[j] += LANE(b.value[j], v) * from[j * wide];
    }
    UNROLL for (int j = 0; j <= K; j++) y[q] += sum[j];
  }
}

static inline vec product_row_backward(struct local b, int64_t width, const vec *table, int64_t
                                       padded, int64_t wide, const vec *grad, vec *grad_table) {
  vec dots[WIDTH];
  memset(dots, 0, sizeof dots);
  for (int64_t q = 0; q < wide; q++)
    for (int64_t v = 0; v < width; v++) {
      const int64_t at = (v * padded + LANE(b.cell, v)) * wide + q;
      vec slope = {0};
      UNROLL for (int j = 0; j <= K; j++) {
        slope += LANE(b.slope[j], v) * table[at + j * wide];
        grad_table[at + j * wide] += LANE(b.value[j], v) * grad[q];
      }
      dots[v] += slope * grad[q];
    }
  return sums(dots);
}

/* y[r] = sum over features f and bases j of basis j at x[r][f] times table[f][j], which are `wide`
   vectors; the table is padded. Where outputs are few this is faster than a product of matrices,
   which multiplies by all the zeros. */
EXPORT void product(struct matrix *x, int64_t rows, int64_t features, struct knots *knots, const vec
                    *table, int64_t padded, vec *y, int64_t wide, int64_t threads) {
  const struct knots t = *knots;
  const struct matrix in = *x;
  const int64_t most = 64; /* rows for which a block of the table is kept in the first-level cache */
#pragma omp parallel for num_threads(threads)
  for (int64_t start = 0; start < rows; start += most) {
    const int64_t end = smaller(rows, start + most);
    memset(y + start * wide, 0, (end - start) * wide * sizeof(vec));
    for (int64_t f = 0; f < features; f += WIDTH)
      for (int64_t r = start; r < end; r++) {
        const int64_t width = smaller(WIDTH, features - f);
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
EXPORT void product_backward(struct matrix *x, int64_t rows, int64_t features, struct knots *knots,
                             const vec *table, int64_t padded, const vec *grad, int64_t wide, struct
                             matrix *grad_x, vec *grad_table, int64_t most, int64_t threads) {
  const struct knots t = *knots;
  const struct matrix in = *x, to = *grad_x;
#pragma omp parallel for collapse(2) num_threads(threads)
  for (int64_t part = 0; part < (rows + most - 1) / most; part++)
    for (int64_t f = 0; f < features; f += WIDTH) {
      const vec *block = table + f * padded * wide;
      vec *grad_block = grad_table + (part * features + f) * padded * wide;
      for (int64_t r = part * most; r < smaller(rows, (part + 1) * most); r++) {
        const int64_t width = smaller(WIDTH, features - f);
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
static inline void scale_row(const REAL *weight, const REAL *scaler, int64_t features, int64_t n,
                             struct matrix to, int64_t row) {
#if WIDTH == 1 /* what has no vectors has no arrays of such a size either */
  for (int64_t f = 0; f < features; f++)
    for (int64_t j = 0; j < n; j++)
      put(to, row, f * n + j, 1, weight[f * n + j] * scaler[f]);
#else
  REAL block[WIDTH * n];
  for (int64_t f = 0; f < features; f += WIDTH) {
    const int64_t width = smaller(WIDTH, features - f);
    for (int64_t v = 0; v < width; v++)
      for (int64_t j = 0; j < n; j++) block[v * n + j] = weight[(f + v) * n + j] * scaler[f + v];
    for (int64_t i = 0; i < width * n; i += WIDTH)
      put(to, row, f * n + i, width * n - i, load(block + i));
  }
#endif
}

EXPORT void scale(const REAL *weight, const REAL *scaler, int64_t outputs, int64_t features, int64_t
                  stride, int64_t n, struct matrix *out, int64_t threads) {
  const struct matrix to = *out;
#pragma omp parallel for num_threads(threads)
  for (int64_t o = 0; o < outputs; o++) {
    const REAL *from = weight + o * stride * n, *by = scaler + o * stride;
    /* The usual n is worth a copy in which the compiler knows it. */
    if (n == 8) scale_row(from, by, features, 8, to, o);
    else scale_row(from, by, features, n, to, o);
  }
}

/* Backward of `scale`: takes the gradient of its result in `grad`, leaves that of weight there. */
static inline void scale_row_backward(const REAL *weight, const REAL *scaler, int64_t features,
                                      int64_t n, REAL *grad, REAL *grad_scaler) {
  for (int64_t f = 0; f < features; f++, weight += n, grad += n) {
    REAL sum = 0, part[16];
    if (n <= 16) { /* products first: so the compiler needs no leave to change the order of a sum */
      for (int64_t j = 0; j < n; j++) part[j] = grad[j] * weight[j];
      for (int64_t j = 0; j < n; j++) sum += part[j];
    } else
      for (int64_t j = 0; j < n; j++) sum += grad[j] * weight[j];
    for (int64_t j = 0; j < n; j++) grad[j] *= scaler[f];
    grad_scaler[f] = sum;
  }
}

EXPORT void scale_backward(const REAL *weight, const REAL *scaler, int64_t outputs, int64_t
                           features, int64_t stride, int64_t n, REAL *grad, REAL *grad_scaler,
                           int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t o = 0; o < outputs; o++) {
    const int64_t edge = o * stride;
    if (n == 8)
      scale_row_backward(weight + edge * 8, scaler + edge, features, 8, grad + edge * 8,
                         grad_scaler + edge);
    else
      scale_row_backward(weight + edge * n, scaler + edge, features, n, grad + edge * n,
                         grad_scaler + edge);
  }
}
