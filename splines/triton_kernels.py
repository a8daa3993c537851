"""Triton kernels of a KAN layer: curves, narrow products and bases, with their backward.

Every kernel reads x (N, F), whose rows may lie apart, computes in float32 and sums over rows block
by block, in one order, so that results repeat bit for bit. Rows count in 64 bits.

Letters: N rows, F features, R columns of a narrow product; BN x BI a tile of rows and features; KP
the number of bases, rounded up to a power of two. GRID (curves, COUNT + ORDER + 1) holds the knots,
of which SIZE neighbouring features share a row.
"""

# ruff: noqa: RUF005 -- Triton compiles (*t, x) in none of its versions
import triton
import triton.language as tl

# Codes of the constants that kernels are compiled for.
OUTSIDE = {"zero": 0, "held": 1, "linear": 2}
ACTIVATIONS = {"given": 0, "identity": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}
ZERO, HELD, LINEAR = (tl.constexpr(code) for code in OUTSIDE.values())
GIVEN, IDENTITY, GELU, GELU_TANH, SILU = (tl.constexpr(code) for code in ACTIVATIONS.values())


@triton.jit
def product(a, b, c):
    """a times b, added to c in float32."""
    if INTERPRETED:  # numpy has no bfloat16; its products are exact in float32
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, c, input_precision="ieee")


# Whether Triton's interpreter runs the kernels, which is decided as they are made; and whether
# Triton's own functions, which they call, were made otherwise.
INTERPRETED = tl.constexpr(not isinstance(product, triton.JITFunction))
TOO_LATE = INTERPRETED.value == isinstance(tl.sum, triton.JITFunction)


# --- the base function ---------------------------------------------------------------------------


@triton.jit
def activated(x, ACT: tl.constexpr):
    y = x
    if ACT == GELU:
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACT == GELU_TANH:
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACT == SILU:
        y = x * tl.sigmoid(x)
    return y


@triton.jit
def base_at(x, A, there, ACT: tl.constexpr):
    """activation(x), at A where torch has computed it."""
    if ACT == GIVEN:
        return tl.load(A, there, 0.0).to(tl.float32)
    else:
        return activated(x, ACT)


@triton.jit
def activated_backward(g, x, ACT: tl.constexpr):
    """The gradient of x from that of activated(x); 0 where torch has computed this."""
    y = g
    if ACT == GIVEN:
        y = tl.zeros_like(g)
    elif ACT == GELU:
        density = tl.exp(-0.5 * x * x) * 0.3989422804014327
        y = g * (0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * density)
    elif ACT == GELU_TANH:
        s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        rise = 1.5957691216057308 * (1 + 0.134145 * x * x)
        y = g * (s + x * s * (1 - s) * rise)
    elif ACT == SILU:
        s = tl.sigmoid(x)
        y = g * (s + x * s * (1 - s))
    return y


# --- bases ---------------------------------------------------------------------------------------


@triton.jit
def held(x, low, high):
    return tl.where(x < low, low, tl.where(x > high, high, x))  # NaN stays


@triton.jit
def beyond(x, w):
    """x - w, never infinite: 0 times it stays 0."""
    return held(x - w, -3e38, 3e38)


@triton.jit
def over(a, b):
    """a / b where there is a b: knots that coincide have no cell between them."""
    return tl.where(b > 0, a / tl.where(b > 0, b, 1.0), 0.0)


@triton.jit
def recursion(w, T, there, high, ORDER: tl.constexpr):
    """Value and slope at w of the basis whose knots begin at T (The NURBS Book, eq. 2.5)."""
    t, n = (), ()
    for r in tl.static_range(ORDER + 2):
        t = t + (tl.load(T + r, there, 0.0),)
    for r in tl.static_range(ORDER + 1):
        # The last cell has both its ends.
        inner = (w >= t[r]) & (w < t[r + 1]) & (w < high)
        inner = inner | ((w >= high) & (t[r + 1] >= high) & (t[r] < high))
        n = n + (tl.where(w == w, inner.to(tl.float32), w),)
    slope = tl.zeros_like(n[0])
    for p in tl.static_range(1, ORDER + 1):
        q, m = (), ()
        for r in tl.static_range(ORDER + 2 - p):
            q = q + (over(n[r], t[r + p] - t[r]),)
        for r in tl.static_range(ORDER + 1 - p):
            m = m + ((w - t[r]) * q[r] + (t[r + p + 1] - w) * q[r + 1],)
        if p == ORDER:
            slope = ORDER * (q[0] - q[1])
        n = m
    return n[0], slope


@triton.jit
def cardinal(t, ORDER: tl.constexpr):
    """Value and slope of the B-spline of order 2 to 5 on whole knots, around t = 0 (Schoenberg).

    A sum of truncated powers, of which only those on one side are taken: few, and none large.
    """
    d = tl.abs(t)
    value, slope = tl.zeros_like(t), tl.zeros_like(t)
    for j in tl.static_range((ORDER + 2) // 2):
        q = tl.maximum((ORDER + 1) / 2 - j - d, 0.0)
        power = q
        for _ in tl.static_range(ORDER - 2):
            power *= q
        if ORDER == 2:
            factor = 0.5 if j == 0 else -1.5
        elif ORDER == 3:
            factor = 1 / 6 if j == 0 else -4 / 6
        elif ORDER == 4:
            factor = 1 / 24 if j == 0 else (-5 / 24 if j == 1 else 10 / 24)
        else:
            factor = 1 / 120 if j == 0 else (-6 / 120 if j == 1 else 15 / 120)
        value += factor * (power * q)
        slope += (factor * ORDER) * power
    return value, tl.where(t > 0, -slope, slope)


@triton.jit
def bases_at(
    x, C, k, known,
    COUNT: tl.constexpr, ORDER: tl.constexpr, OUTSIDE: tl.constexpr, UNIFORM: tl.constexpr,
):  # fmt: skip
    """Values and slopes of bases k (KP) of features whose knots begin at C (BI), at x (BN, BI).

    Both are (BN, BI, KP); those of bases from COUNT on, which do not exist, are 0.
    """
    FIRST: tl.constexpr = 0 if OUTSIDE == ZERO else ORDER
    LAST: tl.constexpr = COUNT + ORDER - FIRST
    x, C, k, known = x[:, :, None], C[None, :, None], k[None, None, :], known[None, :, None]
    low, high = tl.load(C + FIRST, known, 0.0), tl.load(C + LAST, known, 1.0)
    there = known & (k < COUNT)
    w = held(x, low, high)
    if UNIFORM:
        inverse = (LAST - FIRST) / (high - low)
        centre = k.to(tl.float32) + (1 - COUNT) / 2  # of the basis, from the grid's
        value, slope = cardinal((w - 0.5 * (low + high)) * inverse - centre, ORDER)
        value, slope = tl.where(there, value, 0.0), tl.where(there, slope * inverse, 0.0)
        value = tl.where(w == w, value, w)
    else:
        value, slope = recursion(w, C + k, there, high, ORDER)
    if OUTSIDE == LINEAR:
        value += beyond(x, w) * slope
    else:
        inside = (x >= low) & (x <= high)
        slope = tl.where(inside, slope, 0.0)
        if OUTSIDE == ZERO:
            value = tl.where(inside | (x != x), value, 0.0)
    return value, slope


# --- curves: one for each feature or for SIZE neighbours -----------------------------------------


@triton.jit
def curves(
    X, A, GRID, COEF, Y, N, F, LDX, LDA, LDY,
    SIZE: tl.constexpr, COUNT: tl.constexpr, ORDER: tl.constexpr, OUTSIDE: tl.constexpr,
    UNIFORM: tl.constexpr, ACT: tl.constexpr, KP: tl.constexpr,
    ROWS: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Y = activation(X) + the curves at X, with coefficients COEF (curves, COUNT)."""
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    known, k = i < F, tl.arange(0, KP)
    C = GRID + (i // SIZE) * (COUNT + ORDER + 1)
    at = ((i // SIZE) * COUNT)[:, None] + k
    coef = tl.load(COEF + at, known[:, None] & (k < COUNT), 0.0)[None, :, :]
    start = tl.program_id(0).to(tl.int64) * ROWS
    for row in range(0, ROWS, BN):
        n = start + row + tl.arange(0, BN)
        there = (n < N)[:, None] & known
        x = tl.load(X + n[:, None] * LDX + i, there, 0.0).to(tl.float32)
        value, _ = bases_at(x, C, k, known, COUNT, ORDER, OUTSIDE, UNIFORM)
        y = tl.sum(value * coef, 2) + base_at(x, A + n[:, None] * LDA + i, there, ACT)
        tl.store(Y + n[:, None] * LDY + i, y.to(Y.dtype.element_ty), there)


@triton.jit
def curves_backward(
    X, A, GRID, COEF, G, DX, Y, PART, N, F, LDX, LDA, LDG, LDY,
    SIZE: tl.constexpr, COUNT: tl.constexpr, ORDER: tl.constexpr, OUTSIDE: tl.constexpr,
    UNIFORM: tl.constexpr, ACT: tl.constexpr, KP: tl.constexpr,
    AGAIN: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """DX (N, F) from the gradient G of `curves`' result, with this once more in Y where AGAIN.

    PART (row blocks, COUNT, F) gets the sums of G times each basis over ROWS rows.
    """
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    known, k = i < F, tl.arange(0, KP)
    C = GRID + (i // SIZE) * (COUNT + ORDER + 1)
    at = ((i // SIZE) * COUNT)[:, None] + k
    coef = tl.load(COEF + at, known[:, None] & (k < COUNT), 0.0)[None, :, :]
    total = tl.zeros((BI, KP), tl.float32)
    block = tl.program_id(0).to(tl.int64)
    for row in range(0, ROWS, BN):
        n = block * ROWS + row + tl.arange(0, BN)
        there = (n < N)[:, None] & known
        x = tl.load(X + n[:, None] * LDX + i, there, 0.0).to(tl.float32)
        g = tl.load(G + n[:, None] * LDG + i, there, 0.0).to(tl.float32)
        value, rise = bases_at(x, C, k, known, COUNT, ORDER, OUTSIDE, UNIFORM)
        total += tl.sum(g[:, :, None] * value, 0)
        dx = g * tl.sum(rise * coef, 2) + activated_backward(g, x, ACT)
        tl.store(DX + n[:, None] * F + i, dx.to(DX.dtype.element_ty), there)
        if AGAIN:
            y = tl.sum(value * coef, 2) + base_at(x, A + n[:, None] * LDA + i, there, ACT)
            tl.store(Y + n[:, None] * LDY + i, y.to(Y.dtype.element_ty), there)
    P = PART + block * COUNT * F + i
    tl.store(P[:, None] + k * F, total, known[:, None] & (k < COUNT))


# --- the usual curves: cubics on 5 even cells ----------------------------------------------------


@triton.jit
def pieces_of(B, known):
    """A cubic spline on 5 even cells, whose 8 coefficients are at B, in powers of v.

    v = 0 is the middle of the grid and a cell is 1 wide. Returns the polynomial of the middle cell,
    and what is added of (|v| - 1/2)^3 and (|v| - 3/2)^3 where these are positive, on the right and
    on the left: 8 numbers again, and no cell to look for.
    """
    b0, b1 = tl.load(B, known, 0.0), tl.load(B + 1, known, 0.0)
    b2, b3 = tl.load(B + 2, known, 0.0), tl.load(B + 3, known, 0.0)
    b4, b5 = tl.load(B + 4, known, 0.0), tl.load(B + 5, known, 0.0)
    b6, b7 = tl.load(B + 6, known, 0.0), tl.load(B + 7, known, 0.0)
    c0 = (b2 + b5 + 23 * (b3 + b4)) / 48
    c1 = (b5 - b2 + 5 * (b4 - b3)) / 8
    c2 = (b2 - b3 - b4 + b5) / 4
    # Each cell's coefficient of v^3; their jumps at the knots are what is added there.
    d0, d1 = (b3 - b0 + 3 * (b1 - b2)) / 6, (b4 - b1 + 3 * (b2 - b3)) / 6
    d2, d3 = (b5 - b2 + 3 * (b3 - b4)) / 6, (b6 - b3 + 3 * (b4 - b5)) / 6
    d4 = (b7 - b4 + 3 * (b5 - b6)) / 6
    return c0, c1, c2, d2, d3 - d2, d4 - d3, d2 - d1, d1 - d0


@triton.jit
def store_pieces(P, LD, known, a0, a1, a2, a3, r1, r2, l1, l2):
    """The transpose of `pieces_of`: puts gradients of 8 coefficients at P, LD from each other."""
    e0, e1, e2, e3, e4 = -l2 / 6, (l2 - l1) / 6, (a3 + l1 - r1) / 6, (r1 - r2) / 6, r2 / 6
    c0, c1, c2 = a0 / 48, a1 / 8, a2 / 4
    tl.store(P, -e0, known)
    tl.store(P + LD, 3 * e0 - e1, known)
    tl.store(P + 2 * LD, 3 * (e1 - e0) - e2 + c0 - c1 + c2, known)
    tl.store(P + 3 * LD, e0 + 3 * (e2 - e1) - e3 + 23 * c0 - 5 * c1 - c2, known)
    tl.store(P + 4 * LD, e1 + 3 * (e3 - e2) - e4 + 23 * c0 + 5 * c1 - c2, known)
    tl.store(P + 5 * LD, e2 + 3 * (e4 - e3) + c0 + c1 + c2, known)
    tl.store(P + 6 * LD, e3 - 3 * e4, known)
    tl.store(P + 7 * LD, e4, known)


@triton.jit
def even_range(C, known):
    """The middle of a grid of 5 even cells, whose knots begin at C, and the inverse of a cell."""
    low, high = tl.load(C + 3, known, 0.0), tl.load(C + 8, known, 1.0)
    return 0.5 * (low + high), 5.0 / (high - low)


@triton.jit
def powers(x, middle, inverse):
    """What the pieces at x are made of.

    Returns v, v within the grid, whether it lies on the right, and the two truncated |v|.
    """
    v = (x - middle) * inverse
    w = held(v, -2.5, 2.5)
    return v, w, v > 0, tl.maximum(tl.abs(w) - 0.5, 0.0), tl.maximum(tl.abs(w) - 1.5, 0.0)


@triton.jit
def spline_at(v, w, right, q1, q2, c0, c1, c2, c3, r1, r2, l1, l2, OUTSIDE: tl.constexpr):
    """Value and slope of a spline in pieces."""
    s1, s2 = tl.where(right, r1, l1), tl.where(right, r2, l2)
    p1, p2 = q1 * q1, q2 * q2
    y = c0 + w * (c1 + w * (c2 + w * c3)) + s1 * (p1 * q1) + s2 * (p2 * q2)
    outward = 3 * (s1 * p1 + s2 * p2)
    slope = c1 + w * (2 * c2 + w * (3 * c3)) + tl.where(right, outward, -outward)
    if OUTSIDE == LINEAR:
        y += beyond(v, w) * slope
    else:
        slope = tl.where(v == w, slope, 0.0)
    return y, slope


@triton.jit
def cubics(
    X, A, GRID, COEF, Y, N, F, LDX, LDA, LDY,
    SIZE: tl.constexpr, OUTSIDE: tl.constexpr, ACT: tl.constexpr,
    ROWS: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """As `curves`, of order 3 on 5 even cells."""
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    known = i < F
    middle, inverse = even_range(GRID + (i // SIZE) * 12, known)
    c0, c1, c2, c3, r1, r2, l1, l2 = pieces_of(COEF + (i // SIZE) * 8, known)
    start = tl.program_id(0).to(tl.int64) * ROWS
    for row in range(0, ROWS, BN):
        n = start + row + tl.arange(0, BN)
        there = (n < N)[:, None] & known
        x = tl.load(X + n[:, None] * LDX + i, there, 0.0).to(tl.float32)
        v, w, right, q1, q2 = powers(x, middle, inverse)
        y, _ = spline_at(v, w, right, q1, q2, c0, c1, c2, c3, r1, r2, l1, l2, OUTSIDE)
        y += base_at(x, A + n[:, None] * LDA + i, there, ACT)
        tl.store(Y + n[:, None] * LDY + i, y.to(Y.dtype.element_ty), there)


@triton.jit
def cubics_backward(
    X, A, GRID, COEF, G, DX, Y, PART, N, F, LDX, LDA, LDG, LDY,
    SIZE: tl.constexpr, OUTSIDE: tl.constexpr, ACT: tl.constexpr, AGAIN: tl.constexpr,
    ROWS: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """As `curves_backward`, of order 3 on 5 even cells."""
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    known = i < F
    middle, inverse = even_range(GRID + (i // SIZE) * 12, known)
    c0, c1, c2, c3, r1, r2, l1, l2 = pieces_of(COEF + (i // SIZE) * 8, known)
    a0, a1, a2, a3 = (tl.zeros((BN, BI), tl.float32),) * 4
    a4, a5, a6, a7 = (tl.zeros((BN, BI), tl.float32),) * 4
    block = tl.program_id(0).to(tl.int64)
    for row in range(0, ROWS, BN):
        n = block * ROWS + row + tl.arange(0, BN)
        there = (n < N)[:, None] & known
        x = tl.load(X + n[:, None] * LDX + i, there, 0.0).to(tl.float32)
        g = tl.load(G + n[:, None] * LDG + i, there, 0.0).to(tl.float32)
        v, w, right, q1, q2 = powers(x, middle, inverse)
        y, slope = spline_at(v, w, right, q1, q2, c0, c1, c2, c3, r1, r2, l1, l2, OUTSIDE)
        # The powers' own values; beyond the ends those of LINEAR go on with their slopes.
        e = beyond(v, w) if OUTSIDE == LINEAR else tl.zeros_like(v)
        on_right = tl.where(right, g, 0.0)
        on_left = g - on_right
        b4, b5 = q1 * q1 * (q1 + 3 * tl.abs(e)), q2 * q2 * (q2 + 3 * tl.abs(e))
        a0, a1 = a0 + g, a1 + g * (w + e)
        a2, a3 = a2 + g * (w * (w + 2 * e)), a3 + g * (w * w * (w + 3 * e))
        a4, a5 = a4 + on_right * b4, a5 + on_right * b5
        a6, a7 = a6 + on_left * b4, a7 + on_left * b5
        dx = g * (slope * inverse) + activated_backward(g, x, ACT)
        tl.store(DX + n[:, None] * F + i, dx.to(DX.dtype.element_ty), there)
        if AGAIN:
            y += base_at(x, A + n[:, None] * LDA + i, there, ACT)
            tl.store(Y + n[:, None] * LDY + i, y.to(Y.dtype.element_ty), there)
    store_pieces(
        PART + block * 8 * F + i, F, known, tl.sum(a0, 0), tl.sum(a1, 0), tl.sum(a2, 0),
        tl.sum(a3, 0), tl.sum(a4, 0), tl.sum(a5, 0), tl.sum(a6, 0), tl.sum(a7, 0),
    )  # fmt: skip


# --- narrow products: all bases times few columns ------------------------------------------------


@triton.jit
def narrow(
    X, A, GRID, DOWN, H, Z, N, F, LDX, LDA, LDH, LDZ, R,
    COUNT: tl.constexpr, ORDER: tl.constexpr, OUTSIDE: tl.constexpr, UNIFORM: tl.constexpr,
    ACT: tl.constexpr, WRITE: tl.constexpr, KP: tl.constexpr, RP: tl.constexpr,
    BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Z (N, R) = the bases at X times DOWN (R, F, COUNT); and H = activation(X) where WRITE."""
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    r, k = tl.arange(0, RP), tl.arange(0, KP)
    z = tl.zeros((BN, RP), tl.float32)
    for first in range(0, F, BI):
        i = first + tl.arange(0, BI)
        known = i < F
        there = (n < N)[:, None] & known
        x = tl.load(X + n[:, None] * LDX + i, there, 0.0).to(tl.float32)
        if WRITE:
            h = base_at(x, A + n[:, None] * LDA + i, there, ACT)
            tl.store(H + n[:, None] * LDH + i, h.to(H.dtype.element_ty), there)
        C = GRID + i * (COUNT + ORDER + 1)
        value, _ = bases_at(x, C, k, known, COUNT, ORDER, OUTSIDE, UNIFORM)
        j = first * KP + tl.arange(0, BI * KP)
        exists = (j // KP < F) & (j % KP < COUNT)
        at = (j // KP) * COUNT + j % KP
        down = tl.load(
            DOWN + r[None, :] * (F * COUNT) + at[:, None], exists[:, None] & (r < R)[None, :], 0.0
        )
        value = tl.reshape(value, (BN, BI * KP)).to(down.dtype)
        z = product(value, down, z)
    tl.store(
        Z + n[:, None] * LDZ + r[None, :], z.to(Z.dtype.element_ty), (n < N)[:, None] & (r < R)
    )


@triton.jit
def narrow_backward(
    X, A, GRID, DOWN, DH, DZ, DX, H, PART, N, F, LDX, LDA, LDDH, LDDZ, LDH, R,
    COUNT: tl.constexpr, ORDER: tl.constexpr, OUTSIDE: tl.constexpr, UNIFORM: tl.constexpr,
    ACT: tl.constexpr, WRITE: tl.constexpr, BASE: tl.constexpr, KP: tl.constexpr,
    RP: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """DX from the gradients DZ (N, R) of `narrow`'s result and, where BASE, DH of activation(X).

    PART (row blocks, R, F, COUNT) gets the sums of DZ times each basis over ROWS rows; H is written
    again where WRITE.
    """
    first = tl.program_id(1) * BI
    i = first + tl.arange(0, BI)
    known = i < F
    r, k = tl.arange(0, RP), tl.arange(0, KP)
    j = first * KP + tl.arange(0, BI * KP)
    exists = ((j // KP < F) & (j % KP < COUNT))[None, :] & (r < R)[:, None]
    at = r[:, None] * (F * COUNT) + ((j // KP) * COUNT + j % KP)[None, :]
    down = tl.load(DOWN + at, exists, 0.0)
    total = tl.zeros((RP, BI * KP), tl.float32)
    C = GRID + i * (COUNT + ORDER + 1)
    block = tl.program_id(0).to(tl.int64)
    for row in range(0, ROWS, BN):
        n = block * ROWS + row + tl.arange(0, BN)
        there = (n < N)[:, None] & known
        x = tl.load(X + n[:, None] * LDX + i, there, 0.0).to(tl.float32)
        dz = tl.load(DZ + n[:, None] * LDDZ + r[None, :], (n < N)[:, None] & (r < R), 0.0)
        value, slope = bases_at(x, C, k, known, COUNT, ORDER, OUTSIDE, UNIFORM)
        value = tl.reshape(value, (BN, BI * KP)).to(dz.dtype)
        total = product(tl.trans(dz), value, total)
        back = product(dz, down, tl.zeros((BN, BI * KP), tl.float32))
        dx = tl.sum(tl.reshape(back, (BN, BI, KP)) * slope, 2)
        if BASE:
            dh = tl.load(DH + n[:, None] * LDDH + i, there, 0.0).to(tl.float32)
            dx += activated_backward(dh, x, ACT)
        tl.store(DX + n[:, None] * F + i, dx.to(DX.dtype.element_ty), there)
        if WRITE:
            h = base_at(x, A + n[:, None] * LDA + i, there, ACT)
            tl.store(H + n[:, None] * LDH + i, h.to(H.dtype.element_ty), there)
    tl.store(PART + block * R * F * COUNT + at, total, exists)


# --- all bases, for a product of matrices --------------------------------------------------------


@triton.jit
def bases(
    X, GRID, OUT, N, F, LDX,
    COUNT: tl.constexpr, ORDER: tl.constexpr, OUTSIDE: tl.constexpr, UNIFORM: tl.constexpr,
    KP: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """OUT (N, F * COUNT) = the bases at X."""
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    k = tl.arange(0, KP)
    known = i < F
    there = (n < N)[:, None] & known
    x = tl.load(X + n[:, None] * LDX + i, there, 0.0).to(tl.float32)
    C = GRID + i * (COUNT + ORDER + 1)
    value, _ = bases_at(x, C, k, known, COUNT, ORDER, OUTSIDE, UNIFORM)
    at = (n[:, None, None] * F + i[None, :, None]) * COUNT + k[None, None, :]
    tl.store(
        OUT + at, value.to(OUT.dtype.element_ty), there[:, :, None] & (k < COUNT)[None, None, :]
    )


@triton.jit
def slopes(
    X, GRID, G, DX, N, F, LDX, LDDX,
    COUNT: tl.constexpr, ORDER: tl.constexpr, OUTSIDE: tl.constexpr, UNIFORM: tl.constexpr,
    KP: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """DX = the gradient of X from that of `bases`' result, G (N, F * COUNT)."""
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    k = tl.arange(0, KP)
    known = i < F
    there = (n < N)[:, None] & known
    x = tl.load(X + n[:, None] * LDX + i, there, 0.0).to(tl.float32)
    C = GRID + i * (COUNT + ORDER + 1)
    _, slope = bases_at(x, C, k, known, COUNT, ORDER, OUTSIDE, UNIFORM)
    at = (n[:, None, None] * F + i[None, :, None]) * COUNT + k[None, None, :]
    g = tl.load(G + at, there[:, :, None] & (k < COUNT)[None, None, :], 0.0).to(tl.float32)
    dx = tl.sum(g * slope, 2)
    tl.store(DX + n[:, None] * LDDX + i, dx.to(DX.dtype.element_ty), there)
