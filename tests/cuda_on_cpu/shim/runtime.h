// A GPU on the CPU: blocks one after the other, the threads of a block as fibres that wait for each other where the
// kernel says so, and a record of who touched which byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};

namespace cuda_on_cpu {

// Says what is wrong, in which thread of which kernel, and ends the process.
[[noreturn, gnu::format(printf, 1, 2)]] void fault(const char* format, ...);

struct Device {
  int current = 0;
  int processors = 3;
  int error = 0;                  // of the last launch
  std::string order = "forward";  // in which threads and blocks run: or "backward", or "shuffled" by the seed
  unsigned seed = 0;
  std::vector<std::pair<uint64_t, uint64_t>> blocks;  // which run, first and last; none: all
  bool races = true;                                  // two threads that touch a byte unordered are an error
};
extern Device device;

int32_t current_stream(int32_t device, void** stream);
void check_stream(const void* stream);

// What a kernel asks for.
uint3 thread_index();
uint3 block_index();
uint3 block_size();
uint3 grid_size();
int barrier(const char* site, bool vote);  // returns whether any thread voted for
void sync_warp(const char* site);
void fence();
int lane_before(unsigned delta);
int lane_after(unsigned delta);
uint64_t exchange(const char* site, unsigned mask, uint64_t bits, int from_lane);
unsigned ballot(const char* site, unsigned mask, bool vote);
uint32_t atomic_add(void* at, uint32_t x);

void run_blocks(const char* kernel, uint3 grid, uint3 block, const std::function<void()>& thread);

// Memory that kernels may touch. `written`: it holds something; reading what nobody has written is an error.
void add_memory(const char* name, const void* begin, size_t bytes, bool written);
void drop_memory(const void* begin);
void written_by_host(const void* begin, size_t bytes);

// Between the fibres and the record. A place in time: accesses are ordered by it.
struct Stamp {
  uint32_t block = 0;   // numbered through all launches; 0: never, 1: the host
  uint16_t thread = 0;  // within the block
  uint16_t epoch = 0;   // barriers that the block has passed
  uint16_t warp = 0;    // barriers that the warp has passed
  uint16_t fences = 0;  // that the thread has passed
};
bool in_kernel();  // whether what runs is a kernel's code: not the host's, and not this runtime's
struct Runtime {   // while it lives, what runs is the runtime's
  Runtime();
  ~Runtime();
};
Stamp now();
bool happened_before(const Stamp& then);
bool in_own_stack(uintptr_t address);
bool in_any_stack(uintptr_t address);
bool in_host_stack(uintptr_t address);
void accessed(const void* at, size_t bytes, bool write, bool atomic, size_t from);  // from: where in the program
void new_block_of_shared_memory();

}  // namespace cuda_on_cpu
