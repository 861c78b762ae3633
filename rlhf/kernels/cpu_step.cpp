// One token a row through a whole decoder on a CPU: norms, products, rotation, attention over the cache, and
// the feed-forward layer, in float32. cpu_build.py compiles this, cpu_step.py calls it.
//
// Rows stand side by side in the lanes of vectors, in panels of one or WIDE vectors: a panel is (features, its
// lanes), all that a product reads of it end to end. Every lane's sums are made in the same order whatever the
// number of rows and threads, so that no row depends on which others are in the batch.


#include "cpu_decode.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

extern "C" {
// y = W·x + b. Strides are in elements: of one output, and of one input. Kept the same as cpu_step.Linear.
struct Linear {
  const float* weight;
  const float* bias; // (outputs,); null: none
  int64_t outputs, inputs;
  int64_t output_stride, input_stride;
};

// Kept the same as cpu_step.Norm.
struct Norm {
  const float* weight; // (features,); null: there is no such norm
  const float* bias;   // null: none
  float eps;
  int32_t centred; // of LayerNorm, not of RMSNorm
};

// Kept the same as cpu_step.Layer.
struct Layer {
  Norm attention_norm, feed_norm, query_norm, key_norm; // the last two over each head
  Linear query, key, value, output, gate, up, down;     // gate.weight null: not gated
  const float* shared_keys; // (prompts, key_heads, shared_columns, dim)
  const float* shared_values;
  float* keys; // (slots, key_heads, columns, dim) of what follows a prompt
  float* values;
  int64_t window; // tokens attended to, the new one included
  float scale;
};

// Kept the same as cpu_step.Step.
struct Step {
  const Layer* layers;
  const float* embeddings; // (tokens, width)
  const float* places;     // (positions, width) added to them; null: none
  const float* cosines;    // (positions, dim) of the rotation; null: none
  const float* sines;
  const int64_t* tokens;   // (rows,)
  const int64_t* lengths;  // (rows,) tokens of each row before this one, its prompt's among them
  const int64_t* prompts;  // (rows,) which prompt each began with
  const int64_t* begun;    // (rows,) tokens of it
  const int64_t* slots;    // (rows,) where what follows it stands
  float* room;            // of `step_room` elements, 64-byte aligned
  float* out;             // (rows, width) states after the last norm
  int64_t depth, rows, width, heads, key_heads, dim, columns, shared_columns, inner;
  int64_t threads;
  Norm last;
  int32_t activation; // 0: x·σ(x), 1: GELU with a tanh
};

// out = W·x + b for few rows. Kept the same as cpu_step.FewRows.
struct FewRows {
  Linear linear;
  const float* in; // (rows, inputs)
  float* room;     // of inputs·R elements, 64-byte aligned
  float* out;      // (rows, outputs)
  int64_t rows, in_stride, threads;
};
}

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16, WIDE = 4; // of a vector; vectors of rows that are multiplied at once
#elif defined(__AVX__)
constexpr int64_t LANES = 8, WIDE = 2;
#else
constexpr int64_t LANES = 4, WIDE = 2;
#endif
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

// sum + x·factor, rounded once wherever the processor can: left to the compiler, some loops would round twice.
inline Vector fused(Vector x, float factor, Vector sum) {
#if defined(__AVX512F__)
  return (Vector)_mm512_fmadd_ps((__m512)x, _mm512_set1_ps(factor), (__m512)sum);
#elif defined(__FMA__)
  return (Vector)_mm256_fmadd_ps((__m256)x, _mm256_set1_ps(factor), (__m256)sum);
#else
  return sum + x * factor;
#endif
}

constexpr int64_t NARROW = 6, TALL = 12; // outputs at once: of several vectors of rows, and of a single one

inline int64_t rounded(int64_t rows) { return (rows + LANES - 1) / LANES * LANES; }

// The panel of R lanes that begins with lane `first`.
struct Panel {
  int64_t first, lanes;
  Panel(int64_t first, int64_t R) : first(first), lanes(R - first < WIDE * LANES ? LANES : WIDE * LANES) {}
  static Panel of(int64_t row, int64_t R) {
    const int64_t whole = row / (WIDE * LANES) * WIDE * LANES;
    return R - whole < WIDE * LANES ? Panel(row / LANES * LANES, R) : Panel(whole, R);
  }
  template <typename T>
  T* in(T* states, int64_t features) const { return states + first * features; }
};

// What stands in a panel of so many lanes, row by row: element d is at [d·lanes].
inline int64_t lane(const Panel& panel, int64_t row) { return row - panel.first; }

template <int64_t N>
using Count = std::integral_constant<int, N>;

// A place where the threads of a step wait for each other: waking one that sleeps takes longer than a phase.
struct Meeting {
  std::atomic<int64_t> waiting{0}, round{0};
  int64_t threads = 1; // that there really are

  void wait() {
    if (threads == 1) return;
    const int64_t now = round.load(std::memory_order_acquire);
    if (waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      waiting.store(0, std::memory_order_relaxed);
      round.store(now + 1, std::memory_order_release);
      return;
    }
    for (int64_t spins = 0; round.load(std::memory_order_acquire) == now; ++spins) {
      if (spins > 2000) std::this_thread::yield(); // its core is wanted by somebody else
#if defined(__x86_64__)
      else _mm_pause();
#endif
    }
  }
};

// Thread `thread`'s share of so many parts.
struct Share {
  int64_t first, last;
  Share(int64_t parts, int64_t thread, int64_t threads, int64_t each = 1) {
    const int64_t blocks = (parts + each - 1) / each;
    first = std::min(parts, blocks * thread / threads * each);
    last = std::min(parts, blocks * (thread + 1) / threads * each);
  }
};

// N outputs from `n` on, of a panel of L vectors.
template <int N, int L, typename Put>
inline void tile(const Linear& w, int64_t n, const float* in, const Put& put) {
  Vector sums[N][L] = {};
  const float* weight = w.weight + n * w.output_stride;
  for (int64_t k = 0; k < w.inputs; ++k) {
    Vector x[L];
#pragma GCC unroll 4
    for (int l = 0; l < L; ++l) x[l] = *reinterpret_cast<const Vector*>(in + (k * L + l) * LANES);
#pragma GCC unroll 12
    for (int i = 0; i < N; ++i) {
      const float factor = weight[i * w.output_stride + k * w.input_stride];
#pragma GCC unroll 4
      for (int l = 0; l < L; ++l) sums[i][l] = fused(x[l], factor, sums[i][l]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < N; ++i) {
    const float bias = w.bias ? w.bias[n + i] : 0.0f;
#pragma GCC unroll 4
    for (int l = 0; l < L; ++l) put(n + i, l * LANES, sums[i][l] + bias);
  }
}

// Outputs `first` to `last` of all rows, each handed to put(panel, output, lane of the panel, vector).
template <typename Put>
void products(const Linear& w, const float* in, int64_t R, int64_t first, int64_t last, const Put& put) {
  int64_t n = first;
  const auto all = [&](auto tall, auto narrow, int64_t outputs) {
    for (int64_t r = 0; r < R;) {
      const Panel panel(r, R);
      const auto here = [&](int64_t i, int64_t l, Vector v) { put(panel, i, l, v); };
      if (panel.lanes == LANES) tile<decltype(tall)::value, 1>(w, n, panel.in(in, w.inputs), here);
      else tile<decltype(narrow)::value, WIDE>(w, n, panel.in(in, w.inputs), here);
      r += panel.lanes;
    }
    n += outputs;
  };
  if (R == LANES)
    while (n + TALL <= last) all(Count<TALL>(), Count<NARROW>(), TALL);
  while (n + NARROW <= last) all(Count<NARROW>(), Count<NARROW>(), NARROW);
  while (n < last) all(Count<1>(), Count<1>(), 1);
}

inline Vector& vector(const Panel& panel, float* states, int64_t features, int64_t k, int64_t l) {
  return *reinterpret_cast<Vector*>(panel.in(states, features) + k * panel.lanes + l);
}

void set(const Linear& w, const float* in, float* out, int64_t R, const Share& share) {
  products(w, in, R, share.first, share.last,
           [&](const Panel& p, int64_t n, int64_t l, Vector v) { vector(p, out, w.outputs, n, l) = v; });
}

void add(const Linear& w, const float* in, float* out, int64_t R, const Share& share) {
  products(w, in, R, share.first, share.last,
           [&](const Panel& p, int64_t n, int64_t l, Vector v) { vector(p, out, w.outputs, n, l) += v; });
}

inline Vector each(Vector x, float (*function)(float)) {
  for (int64_t i = 0; i < LANES; ++i) x[i] = function(x[i]);
  return x;
}

inline float root(float x) { return std::sqrt(x); }

// `features` of each lane of a panel, from `in` on; in and out may be the same.
template <int L>
void normalise_panel(const Norm& norm, const float* in, float* out, int64_t features) {
  for (int64_t l = 0; l < L; ++l) {
    const auto at = [&](int64_t k) { return *reinterpret_cast<const Vector*>(in + (k * L + l) * LANES); };
    constexpr int64_t PARTS = 4; // sums of a sum: shorter chains, smaller errors
    Vector mean = {};
    if (norm.centred) {
      Vector sums[PARTS] = {};
      for (int64_t k = 0; k < features; ++k) sums[k % PARTS] += at(k);
      mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(features);
    }
    Vector squares[PARTS] = {};
    for (int64_t k = 0; k < features; ++k) {
      const Vector x = at(k) - mean;
      squares[k % PARTS] += x * x;
    }
    const Vector variance = ((squares[0] + squares[1]) + (squares[2] + squares[3])) / static_cast<float>(features);
    const Vector scale = 1.0f / each(variance + norm.eps, root);
    for (int64_t k = 0; k < features; ++k) {
      Vector y = (at(k) - mean) * scale * norm.weight[k];
      if (norm.bias) y += norm.bias[k];
      *reinterpret_cast<Vector*>(out + (k * L + l) * LANES) = y;
    }
  }
}

// Each lane's `features` from feature `from` on, of `all` in a panel.
void normalise(const Norm& norm, const float* in, float* out, int64_t from, int64_t features, int64_t all, int64_t R) {
  for (int64_t r = 0; r < R;) {
    const Panel panel(r, R);
    const float* source = panel.in(in, all) + from * panel.lanes;
    float* target = panel.in(out, all) + from * panel.lanes;
    if (panel.lanes == LANES) normalise_panel<1>(norm, source, target, features);
    else normalise_panel<WIDE>(norm, source, target, features);
    r += panel.lanes;
  }
}

// e^-|x| is all that these need: nothing overflows.
inline float sigmoid(float x) {
  const float power = raised(-std::fabs(x));
  return (x < 0.0f ? power : 1.0f) / (1.0f + power);
}

inline float hyperbolic(float x) {
  const float power = raised(-2.0f * std::fabs(x)), size = (1.0f - power) / (1.0f + power);
  return x < 0.0f ? -size : size;
}

void activate(float* x, int64_t n, int32_t activation) {
  if (activation == 0) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] *= sigmoid(x[i]);
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i)
    x[i] = 0.5f * x[i] * (1.0f + hyperbolic(0.7978845608f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
}

// A head's states by halves: (a, b) becomes (a·cos − b·sin, b·cos + a·sin).
void rotate(float* states, const float* cosines, const float* sines, int64_t dim) {
  const int64_t half = dim / 2;
#pragma omp simd
  for (int64_t d = 0; d < half; ++d) {
    const float a = states[d], b = states[d + half];
    states[d] = a * cosines[d] - b * sines[d];
    states[d + half] = b * cosines[d + half] + a * sines[d + half];
  }
}

typedef float Loose __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

inline Vector at(const float* states, int64_t part) { return reinterpret_cast<const Loose*>(states)[part]; }

inline float sum(Vector x) {
  for (int64_t half = LANES / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

// attend() of cpu_decode.h for a dimension of whole vectors: it keeps every sum in registers.
template <int D>
void attend_vectors(const float* query, const Stretch<float>* stretches, int64_t count, float* out, float scale,
                    std::vector<float>& weights) {
  constexpr int64_t PARTS = D / LANES, HELD = PARTS < 8 ? PARTS : 8; // sums that are made at once
  Vector q[PARTS];
  for (int64_t i = 0; i < PARTS; ++i) q[i] = at(query, i) * scale;
  float peak = -std::numeric_limits<float>::infinity();
  float* weight = weights.data();
  for (const Stretch<float>* part = stretches; part < stretches + count; ++part)
    for (int64_t j = 0; j < part->columns; ++j) {
      Vector products = q[0] * at(part->keys + j * D, 0);
#pragma GCC unroll 16
      for (int64_t i = 1; i < PARTS; ++i) products += q[i] * at(part->keys + j * D, i);
      *weight = sum(products);
      peak = *weight > peak ? *weight : peak;
      ++weight;
    }
  const int64_t n = weight - weights.data();
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < n; ++j) total += weights[j] = raised(weights[j] - peak);
  for (int64_t first = 0; first < PARTS; first += HELD) {
    Vector mixed[HELD] = {};
    weight = weights.data();
    for (const Stretch<float>* part = stretches; part < stretches + count; ++part)
      for (int64_t j = 0; j < part->columns; ++j) {
        const float share = *weight++;
#pragma GCC unroll 8
        for (int64_t i = 0; i < HELD; ++i) mixed[i] = fused(at(part->values + j * D, first + i), share, mixed[i]);
      }
    for (int64_t i = 0; i < HELD; ++i) reinterpret_cast<Loose*>(out)[first + i] = mixed[i] / total;
  }
}

struct Scratch {
  std::vector<float> query, out, weights, sums;
  Scratch(const Step& s) : query(s.dim), out(s.dim), weights(s.shared_columns + s.columns), sums(s.dim) {}
};

// The states of one row's head, out of the lanes.
void take(float* out, const float* states, int64_t features, const Step& s, int64_t head, int64_t row, int64_t R) {
  const Panel panel = Panel::of(row, R);
  const float* first = panel.in(states, features) + head * s.dim * panel.lanes + lane(panel, row);
  for (int64_t d = 0; d < s.dim; ++d) out[d] = first[d * panel.lanes];
}

void turn(float* out, const Step& s, int64_t row) {
  if (s.cosines) rotate(out, s.cosines + s.lengths[row] * s.dim, s.sines + s.lengths[row] * s.dim, s.dim);
}

template <int D>
void attend_head(const Step& s, const Layer& layer, const float* q, const float* k, const float* v, float* mixed,
                 int64_t row, int64_t head, int64_t R, Scratch& scratch) {
  const int64_t queries = s.heads / s.key_heads, begun = s.begun[row], last = s.lengths[row] - begun;
  const int64_t place = (s.slots[row] * s.key_heads + head) * s.columns * s.dim;
  const int64_t shared = (s.prompts[row] * s.key_heads + head) * s.shared_columns * s.dim;
  float *keys = layer.keys + place, *values = layer.values + place;
  take(keys + last * s.dim, k, s.key_heads * s.dim, s, head, row, R);
  turn(keys + last * s.dim, s, row);
  take(values + last * s.dim, v, s.key_heads * s.dim, s, head, row, R);
  const int64_t first = std::max<int64_t>(0, s.lengths[row] + 1 - layer.window); // that is seen
  const int64_t left = std::min(first, begun), past = std::max<int64_t>(0, first - begun);
  const Stretch<float> seen[2] = {
      {layer.shared_keys + shared + left * s.dim, layer.shared_values + shared + left * s.dim, begun - left},
      {keys + past * s.dim, values + past * s.dim, last + 1 - past},
  };
  const Panel panel = Panel::of(row, R);
  for (int64_t query = head * queries; query < (head + 1) * queries; ++query) {
    take(scratch.query.data(), q, s.heads * s.dim, s, query, row, R);
    turn(scratch.query.data(), s, row);
    if constexpr (D > 0)
      attend_vectors<D>(scratch.query.data(), seen, 2, scratch.out.data(), layer.scale, scratch.weights);
    else
      attend<float, 0>(scratch.query.data(), seen, 2, scratch.out.data(), s.dim, layer.scale, scratch.weights,
                       scratch.sums);
    float* target = panel.in(mixed, s.heads * s.dim) + query * s.dim * panel.lanes + lane(panel, row);
    for (int64_t d = 0; d < s.dim; ++d) target[d * panel.lanes] = scratch.out[d];
  }
}

void attend_any(const Step& s, const Layer& layer, const float* q, const float* k, const float* v, float* mixed,
                int64_t R, const Share& share, Scratch& scratch) {
  const auto kind = s.dim == 16 ? attend_head<16> : s.dim == 32 ? attend_head<32> : s.dim == 64 ? attend_head<64>
                    : s.dim == 128 ? attend_head<128> : attend_head<0>;
  for (int64_t pair = share.first; pair < share.last; ++pair)
    kind(s, layer, q, k, v, mixed, pair / s.key_heads, pair % s.key_heads, R, scratch);
}

// Where the states of a step stand in its room; the norms' results are each thread's own.
struct Room {
  float *x, *q, *k, *v, *mixed, *inner, *normal;
  int64_t elements;
  Room(const Step& s, int64_t R, int64_t thread) {
    float* next = s.room;
    const auto block = [&](int64_t features) { float* here = next; next += features * R; return here; };
    x = block(s.width), q = block(s.heads * s.dim), k = block(s.key_heads * s.dim), v = block(s.key_heads * s.dim);
    mixed = block(s.heads * s.dim), inner = block(s.inner), normal = next + thread * s.width * R;
    elements = (next - s.room) + s.threads * s.width * R;
  }
};

// The feed-forward layer's inner states: an output's gate and value are made by the same thread.
void feed(const Step& s, const Layer& layer, const float* in, float* inner, int64_t R, const Share& share) {
  const Linear& first = layer.gate.weight ? layer.gate : layer.up;
  set(first, in, inner, R, share);
  for (int64_t r = 0; r < R;) {
    const Panel panel(r, R);
    activate(panel.in(inner, s.inner) + share.first * panel.lanes, (share.last - share.first) * panel.lanes, s.activation);
    r += panel.lanes;
  }
  if (layer.gate.weight)
    products(layer.up, in, R, share.first, share.last,
             [&](const Panel& p, int64_t n, int64_t l, Vector v) { vector(p, inner, s.inner, n, l) *= v; });
}

void norm_heads(const Norm& norm, float* states, int64_t features, const Step& s, int64_t R, const Share& share) {
  if (!norm.weight) return;
  for (int64_t head = share.first / s.dim; head < share.last / s.dim; ++head)
    normalise(norm, states, states, head * s.dim, s.dim, features, R);
}

void run(const Step& s, int64_t thread, Meeting& meeting) {
  const int64_t threads = meeting.threads;
  const int64_t R = rounded(s.rows);
  const Room room(s, R, thread);
  Scratch scratch(s);
  const auto share = [&](int64_t parts, int64_t each) { return Share(parts, thread, threads, each); };
  const Share own = share(s.width, NARROW);
  for (int64_t row = 0; row < R; ++row) {
    const Panel panel = Panel::of(row, R);
    float* states = panel.in(room.x, s.width) + lane(panel, row);
    for (int64_t d = own.first; d < own.last; ++d) {
      float x = row < s.rows ? s.embeddings[s.tokens[row] * s.width + d] : 0.0f;
      if (s.places && row < s.rows) x += s.places[s.lengths[row] * s.width + d];
      states[d * panel.lanes] = x;
    }
  }
  meeting.wait();
  for (const Layer* layer = s.layers; layer < s.layers + s.depth; ++layer) {
    normalise(layer->attention_norm, room.x, room.normal, 0, s.width, s.width, R);
    const Share heads = share(s.heads * s.dim, layer->query_norm.weight ? s.dim : NARROW);
    const Share key_heads = share(s.key_heads * s.dim, layer->key_norm.weight ? s.dim : NARROW);
    set(layer->query, room.normal, room.q, R, heads);
    set(layer->key, room.normal, room.k, R, key_heads);
    set(layer->value, room.normal, room.v, R, key_heads);
    norm_heads(layer->query_norm, room.q, s.heads * s.dim, s, R, heads);
    norm_heads(layer->key_norm, room.k, s.key_heads * s.dim, s, R, key_heads);
    meeting.wait();
    attend_any(s, *layer, room.q, room.k, room.v, room.mixed, R, share(s.rows * s.key_heads, 1), scratch);
    meeting.wait();
    add(layer->output, room.mixed, room.x, R, own);
    meeting.wait();
    normalise(layer->feed_norm, room.x, room.normal, 0, s.width, s.width, R);
    feed(s, *layer, room.normal, room.inner, R, share(s.inner, NARROW));
    meeting.wait();
    add(layer->down, room.inner, room.x, R, own);
    meeting.wait();
  }
  normalise(s.last, room.x, room.normal, 0, s.width, s.width, R);
  const Share rows = share(s.rows, 1);
  for (int64_t row = rows.first; row < rows.last; ++row) {
    const Panel panel = Panel::of(row, R);
    const float* states = panel.in(room.normal, s.width) + lane(panel, row);
    for (int64_t d = 0; d < s.width; ++d) s.out[row * s.width + d] = states[d * panel.lanes];
  }
}

void run_few(const FewRows& f, int64_t thread, Meeting& meeting) {
  const int64_t R = rounded(f.rows), inputs = f.linear.inputs, outputs = f.linear.outputs;
  const Share rows(R, thread, meeting.threads), own(outputs, thread, meeting.threads, NARROW);
  for (int64_t row = rows.first; row < rows.last; ++row) {
    const Panel panel = Panel::of(row, R);
    float* states = panel.in(f.room, inputs) + lane(panel, row);
    for (int64_t k = 0; k < inputs; ++k) states[k * panel.lanes] = row < f.rows ? f.in[row * f.in_stride + k] : 0.0f;
  }
  meeting.wait();
  constexpr int64_t BLOCK = 4 * TALL; // outputs of all rows before they are written: a row's lie end to end
  std::vector<float> made(BLOCK * R);
  for (int64_t first = own.first; first < own.last; first += BLOCK) {
    const int64_t last = std::min(first + BLOCK, own.last);
    products(f.linear, f.room, R, first, last, [&](const Panel& panel, int64_t n, int64_t l, Vector v) {
      for (int64_t i = 0; i < LANES; ++i) made[(panel.first + l + i) * BLOCK + n - first] = v[i];
    });
    for (int64_t row = 0; row < f.rows; ++row)
      std::copy_n(made.data() + row * BLOCK, last - first, f.out + row * outputs + first);
  }
}

// work(thread, meeting) on up to so many threads.
template <typename Work>
void together(int64_t threads, const Work& work) {
  Meeting meeting;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp single
    meeting.threads = omp_get_num_threads();
    work(omp_get_thread_num(), meeting);
  }
}

} // namespace

extern "C" int64_t step_room(const Step* step) { return Room(*step, rounded(step->rows), 0).elements; }

extern "C" void advance(const Step* step) {
  together(step->threads, [&](int64_t thread, Meeting& meeting) { run(*step, thread, meeting); });
}

extern "C" int64_t few_rows_room(const FewRows* few) { return few->linear.inputs * rounded(few->rows); }

extern "C" void multiply_few_rows(const FewRows* few) {
  together(few->threads, [&](int64_t thread, Meeting& meeting) { run_few(*few, thread, meeting); });
}
