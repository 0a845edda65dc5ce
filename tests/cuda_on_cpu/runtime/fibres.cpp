// The threads of a block as fibres: one runs until it waits for others, then the next. Also what orders them in time.
#include "runtime.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

Device device;

namespace {

constexpr size_t kStack = 64 * 1024, kGuard = 4096, kMost = 1024;
constexpr unsigned kWarp = 32;

enum class State { kReady, kBarrier, kExchange, kWarpBarrier, kDone };

// What a thread or a block knows to have happened in other blocks: of a block the barriers that it had passed, and of
// single threads of it the fences.
struct Past {
  uint16_t epoch = 0;
  std::map<uint16_t, uint16_t> fences;
};
using Clock = std::map<uint32_t, Past>;

void join(Clock& into, const Clock& other) {
  for (const auto& [block, past] : other) {
    Past& mine = into[block];
    mine.epoch = std::max(mine.epoch, past.epoch);
    for (const auto& [thread, fences] : past.fences) mine.fences[thread] = std::max(mine.fences[thread], fences);
  }
}

#if defined(__x86_64__)
using Context = void*;  // a stack pointer; the registers lie there
extern "C" void cuda_on_cpu_switch(void** save, void* load);
asm(R"(
.text
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
void change(Context& save, Context& load) { cuda_on_cpu_switch(&save, load); }
void prepare(Context& context, char* stack, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(stack + kStack);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(stack + kStack - 4096, 4096);  // the frames of the last block, which never returned
#endif
  std::fill(top - 16, top, nullptr);
  top[-2] = reinterpret_cast<void*>(entry);  // where the switch returns to, after six registers
  context = top - 8;
}
#else
using Context = ucontext_t;
void change(Context& save, Context& load) { swapcontext(&save, &load); }
void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

struct Fibre {
  Context context{};
  State state = State::kDone;
  const char* site = "";
  bool vote = false;
  unsigned mask = 0;
  uint64_t deposit = 0;
  uint64_t received[kWarp] = {};
  uint16_t warp_epoch = 0, fences = 0;
  std::unique_ptr<Clock> known, pending, published;  // known; read but not fenced yet; as of the last fence
};

Fibre fibres[kMost];
Context scheduler;
char* stacks = nullptr;
unsigned threads = 0, running = 0;
bool inside = false;
const char* kernel_name = "";
const std::function<void()>* body = nullptr;
uint3 grid{}, block{}, index_of_block{};
uint32_t serial = 1, first_serial = 2;  // of blocks; 1 is the host
uint16_t epoch = 0;
int barrier_result = 0;
Clock block_knows;
std::map<const void*, Clock> released;  // by atomics on an address
std::mt19937 generator;
uintptr_t host_stack = 0;

char* stack_of(unsigned t) { return stacks + t * (kStack + kGuard) + kGuard; }

#if defined(__SANITIZE_ADDRESS__)
const void* host_bottom = nullptr;
size_t host_size = 0;
void begin_switch(void** keep, const void* bottom, size_t size) { __sanitizer_start_switch_fiber(keep, bottom, size); }
void end_switch(void* kept, const void** bottom, size_t* size) { __sanitizer_finish_switch_fiber(kept, bottom, size); }
#else
const void* host_bottom = nullptr;
size_t host_size = 0;
void begin_switch(void**, const void*, size_t) {}
void end_switch(void*, const void**, size_t*) {}
#endif

void wait(State state, const char* site) {
  const Runtime here;
  Fibre& me = fibres[running];
  me.state = state;
  me.site = site;
  void* kept = nullptr;
  begin_switch(state == State::kDone ? nullptr : &kept, host_bottom, host_size);
  change(me.context, scheduler);
  end_switch(kept, nullptr, nullptr);
}

void entry() {
  end_switch(nullptr, &host_bottom, &host_size);
  inside = true;
  (*body)();
  wait(State::kDone, "the end");
  abort();
}

void resume(unsigned t) {
  running = t;
  void* kept = nullptr;
  begin_switch(&kept, stack_of(t), kStack);
  change(scheduler, fibres[t].context);
  end_switch(kept, nullptr, nullptr);
}

// Lets go on what waits for nothing any more; false if that is nobody.
bool release_waiting() {
  bool any = false;
  for (unsigned w = 0; w < threads; w += kWarp) {
    const unsigned lanes = std::min(kWarp, threads - w);
    for (unsigned lane = 0; lane < lanes; ++lane) {
      const Fibre& one = fibres[w + lane];
      if (one.state != State::kExchange && one.state != State::kWarpBarrier) continue;
      const State state = one.state;
      const unsigned mask = one.mask;
      const char* site = one.site;
      const auto there = [&](unsigned l) {
        const Fibre& f = fibres[w + l];
        return l < lanes && f.state == state && f.site == site && f.mask == mask;
      };
      bool all = true;
      for (unsigned l = 0; l < kWarp; ++l) all &= (mask >> l & 1) == 0 || there(l);
      if (!all) continue;
      any = true;
      for (unsigned l = 0; l < lanes; ++l) {
        if ((mask >> l & 1) == 0) continue;
        Fibre& f = fibres[w + l];
        for (unsigned from = 0; from < lanes; ++from) f.received[from] = fibres[w + from].deposit;
        f.warp_epoch = static_cast<uint16_t>(f.warp_epoch + (state == State::kWarpBarrier));
        f.state = State::kReady;
      }
    }
  }
  if (any) return true;
  const auto at_barrier = [&](const Fibre& f) { return f.state == State::kBarrier && f.site == fibres[0].site; };
  if (!std::all_of(fibres, fibres + threads, at_barrier)) return false;
  barrier_result = std::any_of(fibres, fibres + threads, [](const Fibre& f) { return f.vote; });
  if (++epoch == UINT16_MAX) fault("more barriers than the record can count");
  for (Fibre* f = fibres; f < fibres + threads; ++f) {
    f->state = State::kReady;
    if (f->known) join(block_knows, *f->known);
    f->known = nullptr;
  }
  return true;
}

[[noreturn]] void report_deadlock() {
  std::string waiting;
  std::map<std::string, std::vector<unsigned>> by_site;
  for (unsigned t = 0; t < threads; ++t) by_site[fibres[t].site].push_back(t);
  for (const auto& [site, who] : by_site) {
    waiting += " " + std::to_string(who.size()) + " from thread " + std::to_string(who[0]) + " at " + site + ";";
  }
  fault("threads of a block wait for each other at different places:%s", waiting.c_str());
}

void run_block() {
  serial++;
  epoch = 0;
  block_knows.clear();
  new_block_of_shared_memory();
  std::vector<unsigned> order(threads);
  for (unsigned t = 0; t < threads; ++t) {
    order[t] = device.order == "backward" ? threads - 1 - t : t;
    Fibre& f = fibres[t];
    f.state = State::kReady;
    f.site = "the start";
    f.warp_epoch = f.fences = 0;
    f.known.reset();
    f.pending.reset();
    f.published.reset();
    prepare(f.context, stack_of(t), entry);
  }
  const auto is = [](State s) { return [s](const Fibre& f) { return f.state == s; }; };
  do {
    if (device.order == "shuffled") std::shuffle(order.begin(), order.end(), generator);
    for (const unsigned t : order) {
      if (fibres[t].state == State::kReady) resume(t);
    }
    if (std::all_of(fibres, fibres + threads, is(State::kDone))) return;
  } while (std::any_of(fibres, fibres + threads, is(State::kReady)) || release_waiting());
  report_deadlock();
}

}  // namespace

void fault(const char* format, ...) {
  char message[2048];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  fprintf(stderr, "fault: %s, block (%u, %u), thread %u of %u: %s\n", kernel_name, index_of_block.x, index_of_block.y,
          running, threads, message);
  fflush(stderr);
  _exit(70);
}

int32_t current_stream(int32_t which, void** stream) {
  *stream = reinterpret_cast<void*>(static_cast<uintptr_t>(0x1000 + which));
  return 0;
}

void check_stream(const void* stream) {
  void* expected = nullptr;
  current_stream(device.current, &expected);
  if (stream != expected) fault("a launch on another stream than torch's on device %d", device.current);
}

uint3 thread_index() {
  const unsigned t = running;
  return {t % block.x, t / block.x % block.y, t / block.x / block.y};
}
uint3 block_index() { return index_of_block; }
uint3 block_size() { return block; }
uint3 grid_size() { return grid; }

int barrier(const char* site, bool vote) {
  fibres[running].vote = vote;
  wait(State::kBarrier, site);
  return barrier_result;
}

void sync_warp(const char* site) {
  fibres[running].mask = ~0u;
  wait(State::kWarpBarrier, site);
}

int lane_before(unsigned delta) {
  const int lane = static_cast<int>(running % kWarp), from = lane - static_cast<int>(delta);
  return from < 0 ? lane : from;
}

int lane_after(unsigned delta) {
  const unsigned lane = running % kWarp;
  return static_cast<int>(lane + delta < kWarp ? lane + delta : lane);
}

uint64_t exchange(const char* site, unsigned mask, uint64_t bits, int from_lane) {
  Fibre& me = fibres[running];
  if ((mask >> running % kWarp & 1) == 0) fault("%s: the lane is not in its own mask %08x", site, mask);
  const unsigned from = static_cast<unsigned>(from_lane) % kWarp;
  if ((mask >> from & 1) == 0) fault("%s: reads lane %u, which is not in the mask %08x", site, from, mask);
  me.mask = mask;
  me.deposit = bits;
  wait(State::kExchange, site);
  return me.received[from];
}

unsigned ballot(const char* site, unsigned mask, bool vote) {
  const unsigned lane = running % kWarp;
  exchange(site, mask, vote, static_cast<int>(lane));
  unsigned votes = 0;
  for (unsigned l = 0; l < kWarp; ++l) {
    if ((mask >> l & 1) != 0 && fibres[running].received[l] != 0) votes |= 1u << l;
  }
  return votes;
}

// What the thread has read by atomics is ordered before what it does from now on, and what it and, up to the last
// barrier, its block have done before what others do who read its next atomics and pass a fence.
void fence() {
  const Runtime here;
  Fibre& me = fibres[running];
  if (!me.known) me.known = std::make_unique<Clock>();
  if (me.pending) join(*me.known, *me.pending);
  me.pending = nullptr;
  me.published = std::make_unique<Clock>(*me.known);
  join(*me.published, block_knows);
  Past& mine = (*me.published)[serial];
  mine.epoch = epoch;
  mine.fences[static_cast<uint16_t>(running)] = ++me.fences;
}

uint32_t atomic_add(void* at, uint32_t x) {
  accessed(at, sizeof(x), true, true, 0);
  const Runtime here;
  Fibre& me = fibres[running];
  Clock& word_knows = released[at];
  if (!me.pending) me.pending = std::make_unique<Clock>();
  join(*me.pending, word_knows);
  if (me.published) join(word_knows, *me.published);
  auto* word = static_cast<uint32_t*>(at);
  const uint32_t before = *word;
  *word = before + x;
  return before;
}

bool in_kernel() { return inside; }
Runtime::Runtime() { inside = false; }
Runtime::~Runtime() { inside = true; }

Stamp now() {
  const Fibre& me = fibres[running];
  return {serial, static_cast<uint16_t>(running), epoch, me.warp_epoch, me.fences};
}

bool happened_before(const Stamp& then) {
  if (then.block < first_serial) return true;
  const Fibre& me = fibres[running];
  if (then.block == serial) {
    return then.thread == running || then.epoch < epoch ||
           (then.thread / kWarp == running / kWarp && then.warp < me.warp_epoch);
  }
  for (const Clock* clock : {static_cast<const Clock*>(me.known.get()), static_cast<const Clock*>(&block_knows)}) {
    if (clock == nullptr) continue;
    const auto past = clock->find(then.block);
    if (past == clock->end()) continue;
    if (then.epoch < past->second.epoch) return true;
    const auto thread = past->second.fences.find(then.thread);
    if (thread != past->second.fences.end() && then.fences < thread->second) return true;
  }
  return false;
}

bool in_own_stack(uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(stack_of(running)) < kStack;
}
bool in_any_stack(uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(stacks) < kMost * (kStack + kGuard);
}
bool in_host_stack(uintptr_t address) { return address - host_stack < (size_t{1} << 20); }

void run_blocks(const char* kernel, uint3 blocks, uint3 size, const std::function<void()>& thread) {
  kernel_name = kernel;
  const uint64_t count = uint64_t{size.x} * size.y * size.z, all = uint64_t{blocks.x} * blocks.y * blocks.z;
  if (count == 0 || count > kMost || all == 0 || blocks.x > INT32_MAX || blocks.y > 65535 || blocks.z > 65535) {
    device.error = 9;
    return;
  }
  if (stacks == nullptr) {
    void* memory = mmap(nullptr, kMost * (kStack + kGuard), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fault("no memory for the stacks");
    stacks = static_cast<char*>(memory);
    for (unsigned t = 0; t < kMost; ++t) mprotect(stack_of(t), kStack, PROT_READ | PROT_WRITE);
  }
  host_stack = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  threads = static_cast<unsigned>(count);
  grid = blocks;
  block = size;
  body = &thread;
  first_serial = serial + 1;
  released.clear();
  generator.seed(device.seed);
  std::vector<uint64_t> order;
  auto ranges = device.blocks;
  if (ranges.empty()) ranges.push_back({0, all - 1});
  for (const auto& [first, last] : ranges) {
    if (last >= all) fault("block %llu of %llu was asked for", 0ull + last, 0ull + all);
    for (uint64_t b = first; b <= last; ++b) order.push_back(b);
  }
  if (device.order == "backward") std::reverse(order.begin(), order.end());
  if (device.order == "shuffled") std::shuffle(order.begin(), order.end(), generator);
  for (const uint64_t b : order) {
    index_of_block = {static_cast<unsigned>(b % blocks.x), static_cast<unsigned>(b / blocks.x % blocks.y),
                      static_cast<unsigned>(b / blocks.x / blocks.y)};
    run_block();
  }
}

}  // namespace cuda_on_cpu
