// A buffer of aligned floats that grows, never shrinks, and is not initialised.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace mmn_fast {

class FloatBuffer {
 public:
  // Grows to at least `size` floats; the old values are lost when it grows.
  float* grow(int64_t size) {
    if (size <= size_) return data_.get();
    constexpr int64_t kHugePage = 1 << 21;
    const int64_t alignment = size * 4 < kHugePage ? 64 : kHugePage;
    const int64_t bytes = (size * 4 + alignment - 1) / alignment * alignment;
    data_.reset();
    size_ = 0;
    data_.reset(static_cast<float*>(std::aligned_alloc(alignment, bytes)));
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    // Packed weights are streamed, and each 4 KB page would cost a walk of the page table. A refusal costs speed only.
    if (alignment == kHugePage) madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
    size_ = size;
    return data_.get();
  }

  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t size_ = 0;
};

}  // namespace mmn_fast
