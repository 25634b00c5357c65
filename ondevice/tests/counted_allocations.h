// Counts the allocations of a test program, whose only file may include this.
#ifndef SEARCHFORGE_TESTS_COUNTED_ALLOCATIONS_H_
#define SEARCHFORGE_TESTS_COUNTED_ALLOCATIONS_H_

#include <atomic>
#include <cstdlib>
#include <new>

std::atomic<long> allocations{0};

void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

#endif  // SEARCHFORGE_TESTS_COUNTED_ALLOCATIONS_H_
