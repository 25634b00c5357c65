// The best hits seen so far.
#ifndef SEARCHFORGE_TOP_HITS_H_
#define SEARCHFORGE_TOP_HITS_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace searchforge {

// An item, and its distance from the query: the negated dot product as the index approximates it.
struct Hit {
  float distance;
  uint32_t item;

  // Orders by distance; of equal distances, the smaller number comes first.
  bool operator<(const Hit& other) const {
    return distance < other.distance || (distance == other.distance && item < other.item);
  }
};

// Keeps the `k` smallest hits in a heap whose top is the largest of them.
class TopHits {
 public:
  // Forgets all hits. Allocates only if `k` is greater than before.
  void Reset(size_t k) {
    k_ = k;
    hits_.clear();
    hits_.reserve(k);
  }

  bool full() const { return hits_.size() == k_; }

  // Returns the distance above which no hit is kept.
  float limit() const { return full() ? hits_.front().distance : std::numeric_limits<float>::infinity(); }

  void Add(const Hit& hit) {
    if (full()) {
      if (!(hit < hits_.front())) return;
      std::pop_heap(hits_.begin(), hits_.end());
      hits_.back() = hit;
    } else {
      hits_.push_back(hit);
    }
    std::push_heap(hits_.begin(), hits_.end());
  }

  // Sorts the hits, best first, and returns them; only Reset may follow.
  const std::vector<Hit>& Sorted() {
    std::sort_heap(hits_.begin(), hits_.end());
    return hits_;
  }

 private:
  size_t k_ = 1;
  std::vector<Hit> hits_;
};

}  // namespace searchforge

#endif  // SEARCHFORGE_TOP_HITS_H_
