#include "cpu/search/search_moments.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "cpu/isa/kernel_table.h"

namespace mmn_fast {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr int64_t kVideosAtOnce = 4;  // that a thread takes from the queue

struct Entry {
  float score;
  int64_t video, window;
  int32_t cell;
};

bool before(const Entry& a, const Entry& b) { return a.score != b.score ? a.score > b.score : a.video < b.video; }

// The k best entries that were added, best first.
class Best {
 public:
  explicit Best(int64_t k) : k_(k) {}

  void add(const Entry& entry) {
    if (full() && !before(entry, entries_.back())) return;
    if (full()) entries_.pop_back();
    entries_.insert(std::upper_bound(entries_.begin(), entries_.end(), entry, before), entry);
  }
  bool full() const { return static_cast<int64_t>(entries_.size()) == k_; }
  float last_score() const { return full() ? entries_.back().score : kNone; }
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  int64_t k_;
  std::vector<Entry> entries_;
};

double length(const float* vector, int64_t joint) {
  double square = 0.0;
  for (int64_t j = 0; j < joint; ++j) square += static_cast<double>(vector[j]) * vector[j];
  return std::sqrt(square) * (1.0 + 1e-9);
}

// How much longer than its row a row of codes can be: each of J codes is off by half of the largest value over 127.
double stretch(int64_t joint) { return 1.0 + std::sqrt(static_cast<double>(joint)) / 254.0; }

// The bounds of one sentence. A sum of J products, in any order and with any roundings of the products, is off by at most
// 2 J 2^-24 times the product of both lengths; two sums are compared, and one may be of codes. The 8
// more stand for the scales' roundings.
SearchLimit limit_of(const SearchMomentsArgs& args, const float* contrastive, const float* iou) {
  const double norm = args.rows.norm, cosine = norm * length(contrastive, args.joint) * (1.0 + 1e-4);
  double factor = cosine;
  if (args.fusion == ScoreFusion::kPower) {
    factor = args.power >= 0.0f ? std::pow(0.5 * cosine + 0.5, static_cast<double>(args.power))
                                : std::numeric_limits<double>::infinity();
  }
  const double rounding = 4.0 * static_cast<double>(args.joint + 8) * 0x1p-24 * norm * stretch(args.joint);
  return {factor * (1.0 + 1e-4), rounding * length(iou, args.joint),
          static_cast<float>(rounding * length(contrastive, args.joint) * (1.0 + 1e-6))};
}

void raise(std::atomic<float>& floor, float score) {
  float seen = floor.load(std::memory_order_relaxed);
  while (seen < score && !floor.compare_exchange_weak(seen, score, std::memory_order_relaxed)) {
  }
}

// One block of sentences against all windows.
class BlockSearch {
 public:
  BlockSearch(const SearchMomentsArgs& args, const CpuKernels& kernels, const std::vector<int64_t>& videos,
              int64_t first)
      : args_(args), kernels_(kernels), videos_(videos), first_(first),
        sentences_(std::min(kSearchSentences, args.sentences - first)), floors_(new std::atomic<float>[sentences_]),
        errors_(kSearchSentences), contrastive_errors_(kSearchSentences) {
    const int64_t joint = args.joint, columns = kernels.search_columns;
    const float* contrastive = args.text_contrastive + first * joint;
    const float* iou = args.text_iou + first * joint;
    const bool encoded = args.rows.iou_codes != nullptr && sentences_ <= kSearchDirect;
    std::vector<double> moved;  // by their codes: the sentences' contrastive vectors, then their iou vectors
    for (const float* text : {contrastive, iou}) {
      for (int64_t s = 0; encoded && s < sentences_; ++s) moved.push_back(encode(text + s * joint));
    }
    double longest_contrastive = 0.0, longest_iou = 0.0;
    for (int64_t s = 0; s < sentences_; ++s) {
      limits_.push_back(limit_of(args, contrastive + s * joint, iou + s * joint));
      if (encoded) {
        const double codes_norm = stretch(joint) * args.rows.norm;
        limits_[s].error += codes_norm * moved[sentences_ + s];
        limits_[s].contrastive_error += static_cast<float>(codes_norm * moved[s] * (1.0 + 1e-6));
      }
      errors_[s] = static_cast<float>(limits_[s].error * (1.0 + 1e-6));
      contrastive_errors_[s] = limits_[s].contrastive_error;
      longest_contrastive = std::max(longest_contrastive, length(contrastive + s * joint, joint));
      longest_iou = std::max(longest_iou, length(iou + s * joint, joint));
      const Entry last = found(s, args.k - 1);
      floors_[s] = std::max(args.least[first + s], last.video < 0 ? kNone : last.score);
    }
    packed_.assign((sentences_ + columns - 1) / columns * columns * joint, 0.0f);
    for (int64_t s = 0; s < sentences_; ++s) {
      float* panel = packed_.data() + s / columns * columns * joint + s % columns;
      for (int64_t j = 0; j < joint; ++j) panel[j * columns] = iou[s * joint + j];
    }
    block_ = {&args, contrastive, iou, packed_.data(), text_codes_.data(), text_scales_.data(), sentences_,
              static_cast<float>(longest_contrastive * (1.0 + 1e-6)), static_cast<float>(longest_iou * (1.0 + 1e-6)),
              limits_.data(), errors_.data(), contrastive_errors_.data()};
  }

  // Returns false if a score is NaN.
  bool run(int threads) {
    std::vector<std::vector<Best>> lists(threads, std::vector<Best>(sentences_, Best(args_.k)));
    std::atomic<int64_t> next = 0;
    std::atomic<bool> nan = false;
    parallel_for(threads, threads, [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) {
        if (!search(next, lists[t])) nan = true;
      }
    });
    if (nan) return false;
    for (int64_t s = 0; s < sentences_; ++s) merge(s, lists);
    return true;
  }

 private:
  // Adds the codes of a sentence: integers of which no sum of joint products with codes overflows. Returns what the
  // rounding moved it by.
  double encode(const float* text) {
    const int64_t joint = args_.joint, most = std::clamp<int64_t>(INT32_MAX / (127 * joint), 1, INT16_MAX);
    float largest = 0.0f;
    for (int64_t j = 0; j < joint; ++j) largest = std::max(largest, std::abs(text[j]));
    const float scale = largest > 0.0f ? largest / static_cast<float>(most) : 1.0f;
    text_scales_.push_back(scale);
    double square = 0.0;
    for (int64_t j = 0; j < joint; ++j) {
      const auto code = static_cast<int16_t>(std::clamp<long>(std::lrint(text[j] / scale), -most, most));
      text_codes_.push_back(code);
      const double rest = text[j] - static_cast<double>(scale) * code;
      square += rest * rest;
    }
    return std::sqrt(square) * (1.0 + 1e-9);
  }

  Entry found(int64_t s, int64_t place) const {
    const int64_t at = (first_ + s) * args_.k + place;
    return {args_.scores[at], args_.videos[at], args_.windows[at], args_.cells[at]};
  }

  void merge(int64_t s, const std::vector<std::vector<Best>>& lists) {
    Best all(args_.k);
    for (int64_t place = 0; place < args_.k; ++place) {
      if (found(s, place).video >= 0) all.add(found(s, place));
    }
    for (const std::vector<Best>& list : lists) {
      for (const Entry& entry : list[s].entries()) all.add(entry);
    }
    for (int64_t place = 0; place < args_.k; ++place) {
      const bool there = place < static_cast<int64_t>(all.entries().size());
      const Entry entry = there ? all.entries()[place] : Entry{kNone, -1, -1, -1};
      const int64_t at = (first_ + s) * args_.k + place;
      args_.scores[at] = entry.score;
      args_.videos[at] = entry.video;
      args_.windows[at] = entry.window;
      args_.cells[at] = entry.cell;
    }
  }

  // A thread's work: takes videos from the queue until none is left.
  bool search(std::atomic<int64_t>& next, std::vector<Best>& lists) {
    const float infinity = std::numeric_limits<float>::infinity();
    std::vector<float> limits(kSearchSentences, infinity), floors(kSearchSentences), fresh(sentences_),
        seen(sentences_, NAN), scores(sentences_), tiles(2 * kSearchRows * kSearchSentences), decoded(kSearchRows * args_.joint),
        pair(2 * args_.joint), cosines(kSearchSentences);
    std::vector<int64_t> windows(sentences_);
    std::vector<int32_t> cells(sentences_);
    bool nan = false;
    const SearchState state = {limits.data(), floors.data(),  scores.data(), windows.data(), cells.data(),
                               tiles.data(),  decoded.data(), pair.data(),   cosines.data(), &nan};
    const int64_t num_videos = static_cast<int64_t>(videos_.size()) - 1;
    for (int64_t first = next.fetch_add(kVideosAtOnce); first < num_videos; first = next.fetch_add(kVideosAtOnce)) {
      for (int64_t v = first; v < std::min(first + kVideosAtOnce, num_videos); ++v) {
        for (int64_t s = 0; s < sentences_; ++s) {
          const float floor = floors_[s].load(std::memory_order_relaxed);
          if (floor != seen[s]) fresh[s] = search_limit(limits_[s], seen[s] = floor);
          floors[s] = floor;
          limits[s] = fresh[s];
          windows[s] = -1;
        }
        for (int64_t w = videos_[v]; w < videos_[v + 1]; ++w) kernels_.search_window_f32(block_, w, state);
        for (int64_t s = 0; s < sentences_; ++s) {
          if (windows[s] < 0 || !(scores[s] >= args_.least[first_ + s])) continue;
          lists[s].add({scores[s], args_.window_videos[videos_[v]], windows[s], cells[s]});
          raise(floors_[s], lists[s].last_score());
        }
      }
    }
    return !nan;
  }

  const SearchMomentsArgs& args_;
  const CpuKernels& kernels_;
  const std::vector<int64_t>& videos_;  // first window of each video, and the number of windows
  int64_t first_, sentences_;
  std::unique_ptr<std::atomic<float>[]> floors_;
  std::vector<SearchLimit> limits_;
  std::vector<float> errors_, contrastive_errors_, packed_;
  std::vector<int16_t> text_codes_;
  std::vector<float> text_scales_;
  SearchBlock block_ = {};
};

}  // namespace

// Solves F sigmoid(10 u) = score for u. What is subtracted covers the roundings of the kernels' sigmoid and fusion, with a
// relative error below 1e-4 (in `factor`), and those of this function.
float search_limit(const SearchLimit& limit, float score) {
  const double share = static_cast<double>(score) / limit.factor;
  if (!(share > 0.0)) return kNone;
  if (share >= 1.0) return std::numeric_limits<float>::infinity();
  const double u = std::log(share / (1.0 - share)) / 10.0 - limit.error;
  return static_cast<float>(u - 1e-6 * (1.0 + std::abs(u)));
}

void search_moments_cpu(const SearchMomentsArgs& args, CpuIsa isa, int threads) {
  std::vector<int64_t> videos;
  for (int64_t w = 0; w < args.num_windows; ++w) {
    if (w == 0 || args.window_videos[w] != args.window_videos[w - 1]) videos.push_back(w);
  }
  videos.push_back(args.num_windows);
  const CpuKernels kernels = cpu_kernels(isa);
  // Waking a sleeping worker takes about 50 us, in which a thread multiplies some 2^20 elements.
  const int64_t products = args.num_windows * args.proposals * args.joint * std::min(args.sentences, kSearchSentences);
  const int64_t worth = std::min(static_cast<int64_t>(videos.size()) - 1, products >> 20);
  const int used = static_cast<int>(std::clamp<int64_t>(worth, 1, threads));
  for (int64_t first = 0; first < args.sentences; first += kSearchSentences) {
    MMN_CHECK(BlockSearch(args, kernels, videos, first).run(used), "rows: expected no NaN score, got one");
  }
}

}  // namespace mmn_fast
