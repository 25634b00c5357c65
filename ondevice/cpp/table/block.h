// One block of a LevelDB table: sorted entries, of which every few have a complete key and the others leave out what their
// key shares with the one before.
#ifndef SEARCHFORGE_BLOCK_H_
#define SEARCHFORGE_BLOCK_H_

#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/status.h"

namespace searchforge {

// A block's decompressed contents, which must outlive it.
class Block {
 public:
  // An entry; `key` lies in the buffer given to Seek.
  struct Entry {
    std::string_view key;
    Bytes value;
  };

  static Result<Block> Parse(Bytes contents);

  // Returns the first entry whose key is at least `key`, if there is one. Keys are put together in `buffer`.
  Result<std::optional<Entry>> Seek(std::string_view key, std::string& buffer) const;

 private:
  Block(Bytes entries, Bytes restarts) : entries_(entries), restarts_(restarts) {}

  uint32_t restart_count() const { return static_cast<uint32_t>(restarts_.size / sizeof(uint32_t)); }
  Result<Bytes> FromRestart(uint32_t number) const;

  Bytes entries_;
  Bytes restarts_;  // offsets of the complete keys, 4 bytes each
};

}  // namespace searchforge

#endif  // SEARCHFORGE_BLOCK_H_
