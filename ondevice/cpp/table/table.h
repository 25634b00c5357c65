// A LevelDB table (https://github.com/google/leveldb/blob/main/doc/table_format.md): sorted keys and values in blocks.
#ifndef SEARCHFORGE_TABLE_H_
#define SEARCHFORGE_TABLE_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "table/block.h"
#include "model/source.h"
#include "base/status.h"

namespace searchforge {

// Last eight bytes of every table.
inline constexpr uint64_t kTableMagic = 0xdb4775248b80fb57u;

// Memory of one look-up, which the next one uses again.
struct TableBuffer {
  std::vector<uint8_t> stored;
  std::vector<uint8_t> plain;
  std::string key;
};

// A value of a table.
struct TableValue {
  Bytes bytes;
  bool in_place = false;  // in the memory of the source, rather than in the buffer of the look-up
};

// The part of a source that is a table. The source must outlive it. Look-ups with different buffers may run at once.
class Table {
 public:
  Table(Table&&) = default;
  Table& operator=(Table&&) = default;

  // Opens the table of `size` bytes at byte `offset`.
  static Result<Table> Open(const Source& source, uint64_t offset, uint64_t size);

  // Returns the value of a key, if the table has it. It is valid as long as `buffer` is unchanged. The checksum of the
  // value's block is verified.
  Result<std::optional<TableValue>> Find(std::string_view key, TableBuffer& buffer) const;

  // Reads every block and verifies its checksum.
  Status Verify() const;

  // Bytes of the table.
  uint64_t size() const { return size_; }

 private:
  // Position of a block in the table.
  struct Handle {
    uint64_t offset = 0;
    uint64_t size = 0;
  };

  Table(const Source& source, uint64_t offset, uint64_t size) : source_(&source), offset_(offset), size_(size) {}

  static bool ReadHandle(Cursor& cursor, Handle* handle);
  Result<TableValue> ReadBlock(const Handle& handle, TableBuffer& buffer) const;

  const Source* source_;
  uint64_t offset_;
  uint64_t size_;
  Bytes index_;                       // the block that lists the last keys and the handles of all others
  std::vector<uint8_t> index_buffer_;  // holds it if the source is not in memory, or the block is compressed
};

}  // namespace searchforge

#endif  // SEARCHFORGE_TABLE_H_
