// Searches a block of a LevelDB table: by halves among the complete keys, then entry by entry.
#include "table/block.h"

namespace searchforge {
namespace {

Status DamagedBlock(const char* what) {
  return Damaged(std::string("a block of the index is damaged (") + what + "); download the file again");
}

// Reads the next entry; `key` holds the key before it and receives its own.
bool ReadEntry(Cursor& cursor, std::string& key, Bytes* value) {
  uint32_t shared, unshared, length;
  Bytes rest;
  if (!cursor.Varint32(&shared) || !cursor.Varint32(&unshared) || !cursor.Varint32(&length)) return false;
  if (shared > key.size() || !cursor.Take(unshared, &rest) || !cursor.Take(length, value)) return false;
  key.resize(shared);
  key.append(rest.text());
  return true;
}

}  // namespace

Result<Block> Block::Parse(Bytes contents) {
  if (contents.size < sizeof(uint32_t)) return DamagedBlock("it has no end");
  const uint64_t restarts = Load<uint32_t>(contents.end() - sizeof(uint32_t));
  const size_t rest = contents.size - sizeof(uint32_t);
  if (restarts == 0 || restarts > rest / sizeof(uint32_t)) return DamagedBlock("its number of complete keys is impossible");
  const size_t end = rest - static_cast<size_t>(restarts) * sizeof(uint32_t);
  return Block({contents.data, end}, {contents.data + end, rest - end});
}

Result<Bytes> Block::FromRestart(uint32_t number) const {
  const uint32_t offset = Load<uint32_t>(restarts_.data + number * sizeof(uint32_t));
  if (offset > entries_.size) return DamagedBlock("a complete key is outside");
  return Bytes{entries_.data + offset, entries_.size - offset};
}

Result<std::optional<Block::Entry>> Block::Seek(std::string_view key, std::string& buffer) const {
  // Before `low` every complete key is smaller; from `high` on none is.
  uint32_t low = 0, high = restart_count();
  Bytes rest, value;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    SF_ASSIGN_OR_RETURN(rest, FromRestart(middle));
    Cursor cursor(rest);
    buffer.clear();
    if (cursor.remaining() > 0 && !ReadEntry(cursor, buffer, &value)) return DamagedBlock("an entry is cut off");
    if (rest.size > 0 && buffer < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  SF_ASSIGN_OR_RETURN(rest, FromRestart(low > 0 ? low - 1 : 0));
  Cursor cursor(rest);
  buffer.clear();
  while (cursor.remaining() > 0) {
    if (!ReadEntry(cursor, buffer, &value)) return DamagedBlock("an entry is cut off");
    if (buffer >= key) return std::optional<Entry>(Entry{buffer, value});
  }
  return std::optional<Entry>();
}

}  // namespace searchforge
