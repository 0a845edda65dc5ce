// The record of memory: which bytes there are, who touched them last, and what is wrong with it.
//
// The kernels are compiled with -fsanitize=thread, for the calls that it puts before every load and store; they come
// here, to a record that knows blocks, barriers and fences, and not to ThreadSanitizer, which does not.
#include "runtime.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>

extern "C" {
__attribute__((section("cuda_shared"), used)) char cuda_on_cpu_some_shared[16];
extern char __start_cuda_shared[], __stop_cuda_shared[], __executable_start[], end[];
}

namespace cuda_on_cpu {
namespace {

struct Block {
  uintptr_t end;
  const char* name;
  bool written;
};

// Of a byte: the last write, and two of the reads since that are not ordered before each other: a later write races with
// one of them if it races with any that a barrier could order.
struct Cell {
  Stamp write, reads[2];
  bool atomic = false;
};

constexpr uintptr_t kPage = 4096;
struct Page {
  Cell cells[kPage];
};

std::map<uintptr_t, Block> blocks;  // by where they begin
std::map<uintptr_t, Block>::const_iterator last = blocks.end();
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
struct Recent {
  uintptr_t number = 0;
  Page* page = nullptr;
};
constexpr size_t kRecent = 64;
Recent recent[kRecent];

Page& page_of(uintptr_t number) {
  Recent& r = recent[number % kRecent];
  if (r.number != number) {
    auto& page = pages[number];
    if (!page) page = std::make_unique<Page>();
    r = {number, page.get()};
  }
  return *r.page;
}

using Place = std::map<uintptr_t, Block>::const_iterator;

// The tensor that holds an address, or the end.
Place block_of(uintptr_t at) {
  if (last != blocks.end() && at >= last->first && at < last->second.end) return last;
  auto next = blocks.upper_bound(at);
  if (next == blocks.begin()) return blocks.end();
  --next;
  if (at >= next->second.end) return blocks.end();
  return last = next;
}

bool in_shared(uintptr_t at) {
  return at >= reinterpret_cast<uintptr_t>(__start_cuda_shared) && at < reinterpret_cast<uintptr_t>(__stop_cuda_shared);
}

bool in_image(uintptr_t at) {
  return at >= reinterpret_cast<uintptr_t>(__executable_start) && at < reinterpret_cast<uintptr_t>(end);
}

[[noreturn]] void race(const char* what, const char* name, uintptr_t offset, const Stamp& then, const char* before,
                       size_t from) {
  fault("%s byte %llu of %s, which thread %u of %s block %s, and nothing orders the two [0x%zx]", what,
        static_cast<unsigned long long>(offset), name, then.thread, then.block == now().block ? "the same" : "another",
        before, from);
}

// One byte's access by the running thread.
void touch(Cell& cell, const Stamp& me, bool write, bool atomic, const char* name, uintptr_t offset, size_t from) {
  const char* what = write ? "writes" : "reads";
  if (device.races) {
    if (!(atomic && cell.atomic) && !happened_before(cell.write)) race(what, name, offset, cell.write, "wrote", from);
    if (write) {
      for (const Stamp& read : cell.reads) {
        if (!happened_before(read)) race(what, name, offset, read, "read", from);
      }
    }
  }
  if (write) {
    cell.write = me;
    cell.atomic = atomic;
    cell.reads[0] = cell.reads[1] = Stamp{};
    return;
  }
  const auto same = [&](const Stamp& s) { return s.block == me.block && s.thread == me.thread; };
  for (Stamp& read : cell.reads) {
    if (!same(read) && !happened_before(read)) continue;
    read = me;
    return;
  }
}

}  // namespace

void add_memory(const char* name, const void* begin, size_t bytes, bool written) {
  const auto at = reinterpret_cast<uintptr_t>(begin);
  blocks[at] = {at + bytes, name, written};
}

void drop_memory(const void* begin) {
  const auto found = blocks.find(reinterpret_cast<uintptr_t>(begin));
  if (found == blocks.end()) return;
  for (auto& [number, page] : pages) {
    const uintptr_t from = std::max(found->first, number * kPage), to = std::min(found->second.end, (number + 1) * kPage);
    for (uintptr_t at = from; at < to; ++at) page->cells[at % kPage] = Cell{};
  }
  blocks.erase(found);
  last = blocks.end();
}

void written_by_host(const void* begin, size_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(begin);
  for (uintptr_t a = at; a < at + bytes; ++a) {
    Cell& cell = page_of(a / kPage).cells[a % kPage];
    cell = Cell{};
    cell.write.block = 1;
  }
}

void new_block_of_shared_memory() {
#if !defined(__SANITIZE_ADDRESS__)
  std::memset(__start_cuda_shared, 0xa5, static_cast<size_t>(__stop_cuda_shared - __start_cuda_shared));
#endif
}

void accessed(const void* address, size_t bytes, bool write, bool atomic, size_t from) {
  if (!in_kernel()) return;
  const Runtime here;
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (in_own_stack(at)) return;
  const char* what = write ? "writes" : "reads";
  const bool shared = in_shared(at);
  const Place block = shared ? blocks.end() : block_of(at);
  if (!shared && block == blocks.end()) {
    if (!write && (in_host_stack(at) || in_image(at))) return;  // arguments and constants
    if (in_any_stack(at)) fault("%s another thread's local memory [0x%zx]", what, from);
    const auto next = blocks.upper_bound(at);
    const bool first = next == blocks.begin(), final = next == blocks.end();
    fault("%s %zu bytes outside all tensors: %zu after the end of %s, %zu before %s [0x%zx]", what, bytes,
          first ? 0 : at - std::prev(next)->second.end, first ? "none" : std::prev(next)->second.name,
          final ? 0 : next->first - at, final ? "none" : next->second.name, from);
  }
  const uintptr_t begin = shared ? reinterpret_cast<uintptr_t>(__start_cuda_shared) : block->first;
  const uintptr_t limit = shared ? reinterpret_cast<uintptr_t>(__stop_cuda_shared) : block->second.end;
  const char* name = shared ? "shared memory" : block->second.name;
  if (at + bytes > limit) fault("%s %zu bytes past the end of %s [0x%zx]", what, at + bytes - limit, name, from);
  const Stamp me = now();
  for (uintptr_t a = at; a < at + bytes; ++a) {
    Cell& cell = page_of(a / kPage).cells[a % kPage];
    if (shared && cell.write.block != me.block) cell = Cell{};
    const bool known = !shared && block->second.written;
    if ((!write || atomic) && !known && cell.write.block == 0) {
      fault("reads byte %zu of %s, which nobody has written [0x%zx]", a - begin, name, from);
    }
    touch(cell, me, write, atomic, name, a - begin, from);
  }
}

}  // namespace cuda_on_cpu

// Where in the program the access is, as addr2line wants it.
#define HERE (static_cast<char*>(__builtin_return_address(0)) - __executable_start)
#define HOOK(name, write, n) \
  void __tsan_##name##n(void* at) { cuda_on_cpu::accessed(at, n, write, false, HERE); }
#define HOOKS(n)                     \
  HOOK(read, false, n)               \
  HOOK(write, true, n)               \
  HOOK(unaligned_read, false, n)     \
  HOOK(unaligned_write, true, n)

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* at, size_t n) { cuda_on_cpu::accessed(at, n, false, false, HERE); }
void __tsan_write_range(void* at, size_t n) { cuda_on_cpu::accessed(at, n, true, false, HERE); }
// Of the host's code: whether a static is initialised, and counts of references.
char __tsan_atomic8_load(const char* at, int) { return *at; }
int __tsan_atomic32_fetch_add(int* at, int x, int) { return std::exchange(*at, *at + x); }
void __tsan_vptr_update(void*, void*) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
