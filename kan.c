/* The inner loops of kan.py: B-spline bases on any knots, and the curves made of them.

   Compiled once for each spline order and pair of number formats, by kan.py, for instance with
   -DORDER=3 -DREAL=float -DSTORE=float, or -DSTORE=uint16_t -DBFLOAT16. Only ORDER + 1 bases of an
   input differ from zero. They come from the local form of the Cox-de Boor recursion (The NURBS Book,
   algorithms A2.2 and A2.3), for a block of features at once so that the compiler can fill the widest
   vectors there are: about 3 ns an input on one core, where the product that follows takes 100.

   Knots are a table, knot by knot: at[m * stride + feature], m from 0 to count + 2 * ORDER, with
   ORDER invented ones on both sides of the grid. Bases are numbered from -ORDER likewise: in cell c,
   between the grid's knots c and c + 1, those that differ from zero are c - ORDER to c, and of these
   only numbers from 0 to n - 1 exist. */

#include <stdint.h>
#include <string.h>

#define BLOCK 64 /* features at once: what belongs to a block stays in the first-level cache */
#define K ORDER

enum outside { ZERO, HELD, LINEAR };

struct knots {
  const REAL *at;
  long stride, count; /* count: cells of the grid, those of its extension included */
  int outside;
};

struct block { /* what `evaluate` finds for up to BLOCK inputs */
  int32_t cell[BLOCK];
  REAL value[K + 1][BLOCK], slope[K + 1][BLOCK];
};

static inline STORE narrow(REAL value) {
#ifdef BFLOAT16
  union { float real; uint32_t bits; } u = {value};
  return (u.bits + 0x7fff + (u.bits >> 16 & 1)) >> 16; /* to nearest, ties to even */
#else
  return value;
#endif
}

static inline REAL widen(STORE value) {
#ifdef BFLOAT16
  union { uint32_t bits; float real; } u = {(uint32_t)value << 16};
  return u.real;
#else
  return value;
#endif
}

static inline long smaller(long a, long b) { return a < b ? a : b; }

/* Cells, bases and their slopes at x[0] to x[n - 1], inputs of n neighbouring features. */
static inline void evaluate(const REAL *x, long n, struct knots t, struct block *b) {
  const long first = t.outside == ZERO ? 0 : K, last = t.outside == ZERO ? t.count : t.count - K;
  const REAL *low = t.at + (first + K) * t.stride, *high = t.at + (last + K) * t.stride;

  for (long v = 0; v < n; v++) b->cell[v] = first;
  for (long m = first + 1; m < last; m++) {
    const REAL *knot = t.at + (m + K) * t.stride;
    /* Knots that repeat the last one begin no cell. */
    for (long v = 0; v < n; v++) b->cell[v] += x[v] >= knot[v] && knot[v] < high[v];
  }
#pragma omp simd
  for (long v = 0; v < n; v++) {
    const REAL *knot = t.at + v + (b->cell[v] + K) * t.stride;
    const REAL at = x[v] < low[v] ? low[v] : x[v] > high[v] ? high[v] : x[v]; /* NaN stays */
    const REAL beyond = x[v] - at;
    REAL N[K + 1], D[K + 1], left[K + 1], right[K + 1];
    N[0] = 1 + 0 * at;
    D[0] = 0;
#pragma GCC unroll 16
    for (int p = 1; p <= K; p++) {
      left[p] = at - knot[(1 - p) * t.stride];
      right[p] = knot[p * t.stride] - at;
      REAL saved = 0, before = 0;
#pragma GCC unroll 16
      for (int r = 0; r < p; r++) {
        const REAL part = N[r] / (right[r + 1] + left[p - r]);
        N[r] = saved + right[r + 1] * part;
        D[r] = p * (before - part);
        saved = left[p - r] * part;
        before = part;
      }
      N[p] = saved;
      D[p] = p * before;
    }
    const int inside = !(x[v] < low[v] || x[v] > high[v]);
#pragma GCC unroll 16
    for (int j = 0; j <= K; j++) {
      b->value[j][v] = t.outside == LINEAR ? N[j] + beyond * D[j]
                       : inside || t.outside == HELD ? N[j] : 0;
      b->slope[j][v] = inside || t.outside == LINEAR ? D[j] : 0;
    }
  }
}

static inline struct knots from_feature(struct knots t, long feature) {
  t.at += feature;
  return t;
}

/* bases[r][f][j], dense, from x (rows, features); n bases a feature. */
void bases(const REAL *x, long rows, long features, const REAL *at, long stride, long count,
           int outside, STORE *out, long n, int threads) {
  const struct knots t = {at, stride, count, outside};
#pragma omp parallel for num_threads(threads)
  for (long r = 0; r < rows; r++) {
    struct block b;
    STORE *row = out + r * features * n;
    memset(row, 0, features * n * sizeof(STORE));
    for (long f = 0; f < features; f += BLOCK) {
      const long width = smaller(BLOCK, features - f);
      evaluate(x + r * features + f, width, from_feature(t, f), &b);
      for (long v = 0; v < width; v++) {
        const long start = b.cell[v] - K;
        STORE *to = row + (f + v) * n;
        if (start >= 0 && start + K < n)
          for (int j = 0; j <= K; j++) to[start + j] = narrow(b.value[j][v]);
        else
          for (int j = 0; j <= K; j++)
            if (start + j >= 0 && start + j < n) to[start + j] = narrow(b.value[j][v]);
      }
    }
  }
}

/* grad_x[r][f]: the sum over j of grad[r][f][j] times the slope of basis j at x[r][f]. */
void slopes(const REAL *x, long rows, long features, const REAL *at, long stride, long count,
            int outside, const STORE *grad, long n, REAL *grad_x, int threads) {
  const struct knots t = {at, stride, count, outside};
#pragma omp parallel for num_threads(threads)
  for (long r = 0; r < rows; r++) {
    struct block b;
    for (long f = 0; f < features; f += BLOCK) {
      const long width = smaller(BLOCK, features - f);
      evaluate(x + r * features + f, width, from_feature(t, f), &b);
      for (long v = 0; v < width; v++) {
        const long start = b.cell[v] - K;
        const STORE *from = grad + (r * features + f + v) * n;
        REAL sum = 0;
        if (start >= 0 && start + K < n)
          for (int j = 0; j <= K; j++) sum += widen(from[start + j]) * b.slope[j][v];
        else
          for (int j = 0; j <= K; j++)
            if (start + j >= 0 && start + j < n) sum += widen(from[start + j]) * b.slope[j][v];
        grad_x[r * features + f + v] = sum;
      }
    }
  }
}

/* y[r][f]: the spline of feature f at x[r][f]. coef[(K + j) * stride + f] is its coefficient j; there
   are K rows of zeros before the first and after the last, for bases that do not exist. */
void curve(const REAL *x, long rows, long features, const REAL *at, long stride, long count,
           int outside, const REAL *coef, REAL *y, int threads) {
  const struct knots t = {at, stride, count, outside};
  /* Features outside, so that the tables of a block stay in the first-level cache. */
#pragma omp parallel for collapse(2) num_threads(threads)
  for (long part = 0; part < rows; part += 256)
    for (long f = 0; f < features; f += BLOCK) {
      struct block b;
      const long width = smaller(BLOCK, features - f);
      for (long r = part; r < smaller(rows, part + 256); r++) {
        evaluate(x + r * features + f, width, from_feature(t, f), &b);
        REAL *to = y + r * features + f;
#pragma omp simd
        for (long v = 0; v < width; v++) {
          const REAL *c = coef + b.cell[v] * stride + f + v;
          REAL sum = 0;
#pragma GCC unroll 16
          for (int j = 0; j <= K; j++) sum += c[j * stride] * b.value[j][v];
          to[v] = sum;
        }
      }
    }
}

/* Gradients of `curve`: grad_x, and grad_coef[part][f][K + j] (zero on entry) for each part of
   `rows_in_part` rows. The parts are added up outside, in the same order for any number of threads. */
void curve_backward(const REAL *x, long rows, long features, const REAL *at, long stride, long count,
                    int outside, const REAL *coef, const REAL *grad, REAL *grad_x, REAL *grad_coef,
                    long rows_in_part, long n, int threads) {
  const struct knots t = {at, stride, count, outside};
  const long parts = (rows + rows_in_part - 1) / rows_in_part, padded = n + 2 * K;
#pragma omp parallel for collapse(2) num_threads(threads)
  for (long part = 0; part < parts; part++)
    for (long f = 0; f < features; f += BLOCK) {
      struct block b;
      const long width = smaller(BLOCK, features - f);
      for (long r = part * rows_in_part; r < smaller(rows, (part + 1) * rows_in_part); r++) {
        const REAL *g = grad + r * features + f;
        REAL *to = grad_x + r * features + f;
        evaluate(x + r * features + f, width, from_feature(t, f), &b);
#pragma omp simd
        for (long v = 0; v < width; v++) {
          const REAL *c = coef + b.cell[v] * stride + f + v;
          REAL sum = 0;
#pragma GCC unroll 16
          for (int j = 0; j <= K; j++) sum += c[j * stride] * b.slope[j][v];
          to[v] = sum * g[v];
        }
        for (long v = 0; v < width; v++) {
          REAL *c = grad_coef + (part * features + f + v) * padded + b.cell[v];
          for (int j = 0; j <= K; j++) c[j] += g[v] * b.value[j][v];
        }
      }
    }
}

/* out[o][f][j] = weight[o][f][j] * scaler[o][f], of `features` of a layer's `stride` features. */
void scale(const REAL *weight, const REAL *scaler, long outputs, long features, long stride, long n,
           STORE *out, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long o = 0; o < outputs; o++)
    for (long f = 0; f < features; f++) {
      const REAL *from = weight + (o * stride + f) * n, by = scaler[o * stride + f];
      STORE *to = out + (o * features + f) * n;
      for (long j = 0; j < n; j++) to[j] = narrow(from[j] * by);
    }
}

/* Backward of `scale`: takes the gradient of its result in `grad`, leaves that of weight there. */
void scale_backward(const REAL *weight, const REAL *scaler, long outputs, long features, long stride,
                    long n, REAL *grad, REAL *grad_scaler, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long o = 0; o < outputs; o++)
    for (long f = 0; f < features; f++) {
      const long edge = o * stride + f;
      const REAL *w = weight + edge * n, by = scaler[edge];
      REAL *g = grad + edge * n, sum = 0;
      for (long j = 0; j < n; j++) {
        sum += g[j] * w[j];
        g[j] *= by;
      }
      grad_scaler[edge] = sum;
    }
}
