#include "common/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace mmn_fast {
namespace {

struct Job {
  void (*call)(void*, int64_t, int64_t) = nullptr;
  void* context = nullptr;
  int64_t n = 0;
  int parts = 0;

  void run(int part) const { call(context, n * part / parts, n * (part + 1) / parts); }
};

class Pool {
 public:
  // Runs the job unless the workers serve another caller; then returns false.
  bool try_run(Job job) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return false;
    job.parts = 1 + grow_to(job.parts - 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      unfinished_ = job.parts - 1;
      ++round_;
    }
    if (job.parts > 1) wake_.notify_all();
    job.run(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return unfinished_ == 0; });
    return true;
  }

 private:
  // Starts workers up to `wanted`; returns their number, which is smaller only if the system grants no more threads.
  int grow_to(int wanted) {
    try {
      while (workers_ < wanted) {
        std::thread(&Pool::work, this, workers_ + 1, round_).detach();
        ++workers_;
      }
    } catch (const std::system_error&) {
    }
    return std::min(workers_, wanted);
  }

  void work(int part, uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return round_ != seen; });
      seen = round_;
      if (part >= job_.parts) continue;
      const Job job = job_;
      lock.unlock();
      job.run(part);
      lock.lock();
      if (--unfinished_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_;  // held by the caller that the workers serve
  int workers_ = 0;  // guarded by turn_

  std::mutex mutex_;  // guards all members below; round_ is only written under turn_ and mutex_
  std::condition_variable wake_, done_;
  Job job_;
  int unfinished_ = 0;
  uint64_t round_ = 0;
};

// The pool is never destroyed: detached workers may still sleep on its condition variables while the process exits.
std::atomic<Pool*> shared_pool{nullptr};

// A forked child inherits the pool's memory, perhaps with a locked mutex, but no thread; so it abandons the pool.
// The handler is registered when the library is loaded: a static in a function would be one more lock to inherit.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { shared_pool.store(nullptr); });

Pool& pool() {
  Pool* current = shared_pool.load();
  if (current == nullptr) {
    Pool* fresh = new Pool;
    if (shared_pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;  // another thread was first; `current` is now that thread's pool
  }
  return *current;
}

}  // namespace

void detail::run_parts(int64_t n, int threads, void (*call)(void*, int64_t, int64_t), void* context) {
  if (n <= 0) return;
  const int parts = static_cast<int>(std::min<int64_t>(n, threads));
  if (parts <= 1 || !pool().try_run({call, context, n, parts})) call(context, 0, n);
}

}  // namespace mmn_fast
