// Reads a LevelDB table: the footer, the index of blocks, and blocks that are verified and decompressed.
#include "table/table.h"

#include "table/crc32c.h"
#include "table/snappy.h"

namespace searchforge {
namespace {

constexpr uint64_t kFooterSize = 48;
constexpr uint64_t kTrailerSize = 5;  // compression and checksum, after every block
constexpr uint8_t kRaw = 0;
constexpr uint8_t kSnappy = 1;

std::string Again(const std::string& what) { return what + "; download the file again"; }

}  // namespace

bool Table::ReadHandle(Cursor& cursor, Handle* handle) {
  return cursor.Varint(&handle->offset) && cursor.Varint(&handle->size);
}

Result<Table> Table::Open(const Source& source, uint64_t offset, uint64_t size) {
  TableBuffer buffer;
  if (size < kFooterSize) return Damaged(Again("the index has " + std::to_string(size) + " bytes, too few for its end"));
  if (size > source.size() || offset > source.size() - size) return Damaged(Again("the index is cut off"));
  Table table(source, offset, size);
  Bytes footer;
  SF_ASSIGN_OR_RETURN(footer, source.Read(offset + size - kFooterSize, kFooterSize, buffer.stored));
  Cursor cursor(footer);
  Handle metaindex, index;
  if (Load<uint64_t>(footer.end() - sizeof(uint64_t)) != kTableMagic || !ReadHandle(cursor, &metaindex) ||
      !ReadHandle(cursor, &index)) {
    return Damaged(Again("the index does not end as a LevelDB table"));
  }
  TableValue block;
  SF_ASSIGN_OR_RETURN(block, table.ReadBlock(index, buffer));
  if (block.in_place) {
    table.index_ = block.bytes;
  } else {
    table.index_buffer_.assign(block.bytes.begin(), block.bytes.end());
    table.index_ = {table.index_buffer_.data(), table.index_buffer_.size()};
  }
  SF_RETURN_IF_ERROR(Block::Parse(table.index_).status());
  return table;
}

Result<std::optional<TableValue>> Table::Find(std::string_view key, TableBuffer& buffer) const {
  std::optional<Block::Entry> entry;
  {
    const Result<Block> index = Block::Parse(index_);
    if (!index.ok()) return index.status();
    SF_ASSIGN_OR_RETURN(entry, index.value().Seek(key, buffer.key));
  }
  if (!entry) return std::optional<TableValue>();
  Handle handle;
  Cursor cursor(entry->value);
  if (!ReadHandle(cursor, &handle)) return Damaged(Again("the index of blocks is damaged"));
  TableValue block;
  SF_ASSIGN_OR_RETURN(block, ReadBlock(handle, buffer));
  const Result<Block> parsed = Block::Parse(block.bytes);
  if (!parsed.ok()) return parsed.status();
  SF_ASSIGN_OR_RETURN(entry, parsed.value().Seek(key, buffer.key));
  if (!entry || entry->key != key) return std::optional<TableValue>();
  return std::optional<TableValue>(TableValue{entry->value, block.in_place});
}

Result<TableValue> Table::ReadBlock(const Handle& handle, TableBuffer& buffer) const {
  if (size_ < kTrailerSize || handle.size > size_ - kTrailerSize || handle.offset > size_ - kTrailerSize - handle.size) {
    return Damaged(Again("a block of " + std::to_string(handle.size) + " bytes at byte " + std::to_string(handle.offset) +
                         " is not inside the index of " + std::to_string(size_)));
  }
  Bytes stored;
  SF_ASSIGN_OR_RETURN(stored, source_->Read(offset_ + handle.offset, handle.size + kTrailerSize, buffer.stored));
  const Bytes contents{stored.data, stored.size - kTrailerSize};
  const uint8_t kind = *contents.end();
  if (MaskedCrc32c({stored.data, contents.size + 1}) != Load<uint32_t>(contents.end() + 1)) {
    return Damaged(Again("the checksum of the block at byte " + std::to_string(handle.offset) + " is wrong"));
  }
  if (kind == kRaw) return TableValue{contents, source_->in_memory()};
  if (kind != kSnappy) {
    return Unsupported("a block has compression " + std::to_string(kind) + ", expected 0 (none) or 1 (Snappy); build the index again");
  }
  Bytes plain;
  SF_ASSIGN_OR_RETURN(plain, SnappyDecompress(contents, buffer.plain));
  return TableValue{plain, false};
}

Status Table::Verify() const {
  TableBuffer buffer;
  std::string key;
  std::optional<Block::Entry> entry;
  const Result<Block> index = Block::Parse(index_);
  if (!index.ok()) return index.status();
  SF_ASSIGN_OR_RETURN(entry, index.value().Seek({}, key));
  while (entry) {
    Handle handle;
    Cursor cursor(entry->value);
    if (!ReadHandle(cursor, &handle)) return Damaged(Again("the index of blocks is damaged"));
    SF_RETURN_IF_ERROR(ReadBlock(handle, buffer).status());
    SF_ASSIGN_OR_RETURN(entry, index.value().Seek(key + '\0', key));
  }
  return {};
}

}  // namespace searchforge
