#include "common/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace mmn_fast {
namespace {

struct Job {
  void (*call)(void*, int64_t, int64_t) = nullptr;
  void* context = nullptr;
  int64_t n = 0;
  int parts = 0;

  void run(int part) const { call(context, n * part / parts, n * (part + 1) / parts); }
};

// Workers for all callers. A call takes those that are idle, so that calls at the same time share them; together they
// are as many as the largest call so far has wanted, and calls never start more threads than that.
class Pool {
 public:
  void run(Job job) {
    Call call;
    const std::vector<Worker*> mine = take(job, call);
    // Not under the lock, for which a worker that wakes would wait. A worker may have seen its call already.
    for (Worker* worker : mine) worker->wake.notify_one();
    call.job.run(0);
    if (call.job.parts == 1) return;
    std::unique_lock<std::mutex> lock(mutex_);
    call.done.wait(lock, [&call] { return call.unfinished == 0; });
  }

 private:
  struct Call {
    Job job;
    int unfinished = 0;  // parts that workers have
    std::condition_variable done;
  };

  struct Worker {
    Call* call = nullptr;  // null while idle
    int part = 0;
    std::condition_variable wake;
  };

  // Gives parts of the job to workers that are idle.
  std::vector<Worker*> take(const Job& job, Call& call) {
    std::lock_guard<std::mutex> lock(mutex_);
    grow_to(job.parts - 1);
    call.unfinished = std::min<int>(idle_.size(), job.parts - 1);
    call.job = job;
    call.job.parts = 1 + call.unfinished;
    const std::vector<Worker*> taken(idle_.end() - call.unfinished, idle_.end());
    idle_.resize(idle_.size() - taken.size());
    for (int part = 1; part < call.job.parts; ++part) {
      taken[part - 1]->call = &call;
      taken[part - 1]->part = part;
    }
    return taken;
  }

  // Starts workers up to `wanted`; they are fewer only if the system grants no more threads or memory.
  void grow_to(int wanted) {
    try {
      while (workers_ < wanted) {
        idle_.reserve(workers_ + 1);  // a worker that returns must not need memory
        auto worker = std::make_unique<Worker>();
        std::thread(&Pool::work, this, worker.get()).detach();
        idle_.push_back(worker.release());
        ++workers_;
      }
    } catch (const std::exception&) {
    }
  }

  void work(Worker* self) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      self->wake.wait(lock, [self] { return self->call != nullptr; });
      Call* call = self->call;
      lock.unlock();
      call->job.run(self->part);
      lock.lock();
      self->call = nullptr;
      idle_.push_back(self);
      if (--call->unfinished == 0) call->done.notify_one();  // under the lock: then the caller's `call` ends
    }
  }

  std::mutex mutex_;  // guards all members below, and those of workers and calls
  int workers_ = 0;
  std::vector<Worker*> idle_;
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
  if (parts <= 1) {
    call(context, 0, n);
  } else {
    pool().run({call, context, n, parts});
  }
}

}  // namespace mmn_fast
