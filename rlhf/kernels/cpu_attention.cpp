// Attention of rows that stand end to end, on a CPU: forward and backward, all rows and heads in one call.
// cpu_build.py compiles this, cpu_attention.py calls it.
//
// Rows are short and many: what counts is that a row costs no more than its own arithmetic. A row's numbers
// are made in the same order whatever the number of threads and of other rows, and whether its beginning is
// its own or another row's.

#include "cpu_exponential.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

extern "C" {
// Kept the same as cpu_attention.Call. Strides are in elements; the last dimension is contiguous.
struct Call {
  const float* query; // (tokens, heads, dim)
  const float* key;   // (tokens, key_heads, dim)
  const float* value; // (tokens, key_heads, dim)
  float* out;         // (tokens, heads, dim) contiguous
  float* norms;       // (tokens, heads) log of the sum of exponentials
  const float* d_out; // (tokens, heads, dim); null in the forward
  float* d_query;     // contiguous, as are the next two; these start with zeros
  float* d_key;
  float* d_value;
  const int64_t* rows;   // (number of rows, 4): see Row
  const int64_t* groups; // (groups + 1,) where the rows begin that share a beginning
  int64_t group_count, heads, key_heads, dim;
  int64_t query_token, query_head, key_token, key_head, value_token, value_head, d_out_token, d_out_head;
  int64_t window; // tokens attended to, the token itself included
  int64_t threads;
  float scale;
};
}

namespace {

struct Row {
  int64_t first, length; // of its own tokens
  int64_t leader, same;  // first token of the row that it begins like, and how many tokens they have in common
  int64_t tokens() const { return same + length; }
  int64_t place(int64_t j) const { return j < same ? leader + j : first + j - same; }
};

constexpr int64_t WIDE = 16;   // columns of a tile of products, and what widths are filled up to
constexpr int64_t HEIGHT = 4;  // its rows
constexpr int64_t BLOCK = 16;  // queries of a row that the backward takes at once

typedef float Vector __attribute__((vector_size(32)));

inline int64_t filled(int64_t width) { return (width + WIDE - 1) / WIDE * WIDE; }

inline Vector load(const float* from) {
  Vector found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

// A factor whose rows or columns may be the contiguous ones.
struct Factor {
  const float* data;
  int64_t row, column; // strides
};

// c (+)= a·b for M rows and WIDE columns.
template <int M>
inline void tile(Factor a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t depth, bool adds) {
  Vector left[M], right[M];
  for (int i = 0; i < M; ++i) {
    left[i] = adds ? load(c + i * c_row) : Vector{};
    right[i] = adds ? load(c + i * c_row + 8) : Vector{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const Vector x = load(b + k * b_row), y = load(b + k * b_row + 8);
    for (int i = 0; i < M; ++i) {
      const float factor = a.data[i * a.row + k * a.column];
      left[i] += factor * x;
      right[i] += factor * y;
    }
  }
  for (int i = 0; i < M; ++i) {
    std::memcpy(c + i * c_row, &left[i], sizeof left[i]);
    std::memcpy(c + i * c_row + 8, &right[i], sizeof right[i]);
  }
}

// c (+)= a·b; columns are filled up.
void product(Factor a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t rows, int64_t columns, int64_t depth, bool adds = false) {
  for (int64_t i = 0; i < rows; i += HEIGHT)
    for (int64_t j = 0; j < columns; j += WIDE) {
      const Factor part = {a.data + i * a.row, a.row, a.column};
      float* target = c + i * c_row + j;
      switch (std::min(rows - i, HEIGHT)) {
        case 1: tile<1>(part, b + j, b_row, target, c_row, depth, adds); break;
        case 2: tile<2>(part, b + j, b_row, target, c_row, depth, adds); break;
        case 3: tile<3>(part, b + j, b_row, target, c_row, depth, adds); break;
        default: tile<4>(part, b + j, b_row, target, c_row, depth, adds);
      }
    }
}

// What a row's queries attend to: the columns [first, last), of which each has its own part.
struct Reach {
  int64_t first, last;
};

Reach reach(const Row& row, int64_t query, int64_t count, int64_t window) {
  const int64_t last = row.same + query + count, begin = std::max<int64_t>(0, row.same + query + 1 - window);
  return {begin / WIDE * WIDE, last};
}

// Room for one row and head, used again for the next.
struct Room {
  std::vector<float> keys, values, keys_across, values_across; // (tokens, dim) twice, (dim, tokens) twice
  std::vector<float> queries, upstream, weights, slopes, sums; // of a block of queries
  std::vector<float> d_keys, d_values;
  int64_t width = 0, across = 0; // filled dim, filled tokens

  void fit(int64_t dim, int64_t tokens, bool backward) {
    width = filled(dim), across = filled(tokens);
    keys_across.assign(dim * across, 0.0f);
    for (auto* part : {&queries, &upstream, &sums}) part->assign(BLOCK * width, 0.0f);
    weights.resize(BLOCK * across);
    if (!backward) return values.assign(across * width, 0.0f);
    values_across.assign(dim * across, 0.0f);
    slopes.resize(BLOCK * across);
    keys.assign(across * width, 0.0f);
    for (auto* part : {&d_keys, &d_values}) part->assign(across * width, 0.0f);
  }
};

void gather(const float* from, int64_t stride, const Row& row, int64_t dim, float* to, int64_t width) {
  for (int64_t j = 0; j < row.tokens(); ++j) std::copy_n(from + row.place(j) * stride, dim, to + j * width);
}

void gather_across(const float* from, int64_t stride, const Row& row, int64_t dim, float* to, int64_t across) {
  for (int64_t j = 0; j < row.tokens(); ++j) {
    const float* states = from + row.place(j) * stride;
    for (int64_t d = 0; d < dim; ++d) to[d * across + j] = states[d];
  }
}

void scatter(const float* from, int64_t width, const Row& row, int64_t dim, float* to, int64_t stride) {
  for (int64_t j = 0; j < row.tokens(); ++j) {
    float* sum = to + row.place(j) * stride;
    for (int64_t d = 0; d < dim; ++d) sum[d] += from[j * width + d];
  }
}

void scaled_queries(const Call& call, const Row& row, int64_t query, int64_t count, int64_t head, Room& room) {
  for (int64_t i = 0; i < count; ++i) {
    const float* from = call.query + (row.first + query + i) * call.query_token + head * call.query_head;
    for (int64_t d = 0; d < call.dim; ++d) room.queries[i * room.width + d] = from[d] * call.scale;
  }
}

// exp(score - norm) in the columns that a query attends to, 0 in the others up to `end`.
inline void weigh(float* scores, int64_t begin, int64_t after, int64_t end, float norm) {
  for (int64_t j = 0; j < begin; ++j) scores[j] = 0.0f;
#pragma omp simd
  for (int64_t j = begin; j < after; ++j) scores[j] = raised(scores[j] - norm);
  for (int64_t j = after; j < end; ++j) scores[j] = 0.0f;
}

// One row of one head: `HEIGHT` queries at a time, so that few columns are computed in vain.
void attend(const Call& call, const Row& row, int64_t head, Room& room) {
  const int64_t width = room.width, across = room.across;
  for (int64_t query = 0; query < row.length; query += HEIGHT) {
    const int64_t count = std::min(HEIGHT, row.length - query);
    const Reach seen = reach(row, query, count, call.window);
    const int64_t columns = filled(seen.last - seen.first);
    float* weights = room.weights.data();
    scaled_queries(call, row, query, count, head, room);
    product({room.queries.data(), width, 1}, room.keys_across.data() + seen.first, across, weights, across, count, columns, call.dim);
    float totals[HEIGHT];
    for (int64_t i = 0; i < count; ++i) {
      float* scores = weights + i * across;
      const int64_t own = row.same + query + i, after = own + 1 - seen.first;
      const int64_t begin = std::max<int64_t>(0, own + 1 - call.window) - seen.first;
      float peak = -std::numeric_limits<float>::infinity(), total = 0.0f;
#pragma omp simd reduction(max : peak)
      for (int64_t j = begin; j < after; ++j) peak = scores[j] > peak ? scores[j] : peak;
      weigh(scores, begin, after, columns, peak);
#pragma omp simd reduction(+ : total)
      for (int64_t j = 0; j < columns; ++j) total += scores[j];
      totals[i] = total;
      call.norms[(row.first + query + i) * call.heads + head] = peak + std::log(total);
    }
    product({weights, across, 1}, room.values.data() + seen.first * width, width, room.sums.data(), width, count, width, seen.last - seen.first);
    for (int64_t i = 0; i < count; ++i) {
      float* out = call.out + ((row.first + query + i) * call.heads + head) * call.dim;
      for (int64_t d = 0; d < call.dim; ++d) out[d] = room.sums[i * width + d] / totals[i];
    }
  }
}

// d loss / d scores of a block from its weights and d loss / d weights; ∂/∂s_j = p_j·(∂/∂p_j − Σ_k p_k·∂/∂p_k).
void descend(const Call& call, const Row& row, int64_t query, int64_t count, int64_t head, Reach seen, Room& room) {
  const int64_t columns = filled(seen.last - seen.first);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token = row.first + query + i, own = row.same + query + i;
    float* weights = room.weights.data() + i * room.across;
    float* slopes = room.slopes.data() + i * room.across;
    weigh(weights, std::max<int64_t>(0, own + 1 - call.window) - seen.first, own + 1 - seen.first, columns, call.norms[token * call.heads + head]);
    const float* out = call.out + (token * call.heads + head) * call.dim;
    const float* upstream = room.upstream.data() + i * room.width;
    float mean = 0.0f;
#pragma omp simd reduction(+ : mean)
    for (int64_t d = 0; d < call.dim; ++d) mean += upstream[d] * out[d];
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) slopes[j] = weights[j] * (slopes[j] - mean);
  }
}

// One row of one head backwards, into its queries' gradients and the sums of keys' and values'.
void attend_back(const Call& call, const Row& row, int64_t head, Room& room) {
  const int64_t width = room.width, across = room.across;
  for (int64_t query = 0; query < row.length; query += BLOCK) {
    const int64_t count = std::min(BLOCK, row.length - query);
    const Reach seen = reach(row, query, count, call.window);
    const int64_t some = seen.last - seen.first, columns = filled(some);
    float *weights = room.weights.data(), *slopes = room.slopes.data();
    scaled_queries(call, row, query, count, head, room);
    for (int64_t i = 0; i < count; ++i)
      std::copy_n(call.d_out + (row.first + query + i) * call.d_out_token + head * call.d_out_head, call.dim, room.upstream.data() + i * width);
    product({room.queries.data(), width, 1}, room.keys_across.data() + seen.first, across, weights, across, count, columns, call.dim);
    product({room.upstream.data(), width, 1}, room.values_across.data() + seen.first, across, slopes, across, count, columns, call.dim);
    descend(call, row, query, count, head, seen, room);
    product({weights, 1, across}, room.upstream.data(), width, room.d_values.data() + seen.first * width, width, some, width, count, true);
    product({slopes, 1, across}, room.queries.data(), width, room.d_keys.data() + seen.first * width, width, some, width, count, true);
    product({slopes, across, 1}, room.keys.data() + seen.first * width, width, room.sums.data(), width, count, width, some);
    for (int64_t i = 0; i < count; ++i) {
      float* to = call.d_query + ((row.first + query + i) * call.heads + head) * call.dim;
      for (int64_t d = 0; d < call.dim; ++d) to[d] = room.sums[i * width + d] * call.scale;
    }
  }
}

// All queries of a row that share a key head.
void run(const Call& call, const Row& row, int64_t key_head, Room& room) {
  const int64_t queries = call.heads / call.key_heads;
  const float *keys = call.key + key_head * call.key_head, *values = call.value + key_head * call.value_head;
  room.fit(call.dim, row.tokens(), call.d_out);
  gather_across(keys, call.key_token, row, call.dim, room.keys_across.data(), room.across);
  if (!call.d_out) {
    gather(values, call.value_token, row, call.dim, room.values.data(), room.width);
    for (int64_t head = key_head * queries; head < (key_head + 1) * queries; ++head) attend(call, row, head, room);
    return;
  }
  gather(keys, call.key_token, row, call.dim, room.keys.data(), room.width);
  gather_across(values, call.value_token, row, call.dim, room.values_across.data(), room.across);
  for (int64_t head = key_head * queries; head < (key_head + 1) * queries; ++head) attend_back(call, row, head, room);
  const int64_t stride = call.key_heads * call.dim, start = key_head * call.dim;
  scatter(room.d_keys.data(), room.width, row, call.dim, call.d_key + start, stride);
  scatter(room.d_values.data(), room.width, row, call.dim, call.d_value + start, stride);
}

} // namespace

// A group's rows add to the gradients of the same tokens, so one thread takes them one after the other.
extern "C" void attend_rows(const Call* call) {
  const Row* rows = reinterpret_cast<const Row*>(call->rows);
#pragma omp parallel num_threads(call->threads) if (call->threads > 1)
  {
    Room room;
#pragma omp for schedule(dynamic)
    for (int64_t pair = 0; pair < call->group_count * call->key_heads; ++pair) {
      const int64_t group = pair / call->key_heads;
      for (int64_t row = call->groups[group]; row < call->groups[group + 1]; ++row) run(*call, rows[row], pair % call->key_heads, room);
    }
  }
}
