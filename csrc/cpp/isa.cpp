// Chooses the instruction set once, at load. SEGFUSE_ISA=baseline|avx2|avx512 forces one that the machine has.
#include <cstdlib>
#include <cstring>

#include "kernels.h"
#include "threads.h"

#ifdef __linux__
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace segfuse {
namespace {

struct Isa {
  const char* name;
  int number;  // of isa()
  bool supported;
};

const Isa* isas(int& count) {
  static const Isa all[] = {
#ifdef SEGFUSE_X86
      {"avx512", 2,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd")},
      {"avx2", 1, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")},
#endif
      {"baseline", 0, true},
  };
  count = sizeof(all) / sizeof(all[0]);
  return all;
}

const Isa& chosen() {
  static const Isa* isa = [] {
    int count;
    const Isa* all = isas(count);
    const char* forced = std::getenv("SEGFUSE_ISA");
    for (int i = 0; forced != nullptr && i < count; ++i)
      if (std::strcmp(all[i].name, forced) == 0 && all[i].supported) return all + i;
    while (!all->supported) ++all;
    return all;
  }();
  return *isa;
}

bool in_child = false;

}  // namespace

int isa() { return chosen().number; }

const char* isa_used() { return chosen().name; }

const char* isa_found() {
  static char names[64];
  names[0] = 0;
  int count;
  const Isa* all = isas(count);
  for (int i = 0; i < count; ++i) {
    if (!all[i].supported) continue;
    if (names[0] != 0) std::strcat(names, " ");
    std::strcat(names, all[i].name);
  }
  return names;
}

bool forked() {
#ifdef __linux__
  static const int registered = pthread_atfork(nullptr, nullptr, [] { in_child = true; });
  (void)registered;
#endif
  return in_child;
}

// A large gradient is fresh memory; 4 KiB page faults alone would cost more than writing it.
void huge_pages(void* data, size_t bytes) {
#ifdef __linux__
  const uintptr_t page = 2u << 20, begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace segfuse
