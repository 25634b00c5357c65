// Lists the files of a ZIP archive from its central directory, with and without the fields of Zip64.
#include "model/zip_archive.h"

#include <algorithm>

namespace searchforge {
namespace {

constexpr uint32_t kEndSignature = 0x06054b50, kEnd64Signature = 0x06064b50, kLocator64Signature = 0x07064b50;
constexpr uint32_t kEntrySignature = 0x02014b50, kLocalSignature = 0x04034b50;
constexpr uint64_t kEndSize = 22, kEnd64Size = 56, kLocator64Size = 20, kEntrySize = 46, kLocalSize = 30;
constexpr uint64_t kMaxComment = 65535;
constexpr uint16_t kZip64Field = 1;
constexpr uint16_t kStored = 0;
constexpr uint32_t kIn64 = 0xffffffff;  // the value is in the fields of Zip64

Status DamagedArchive(const char* what) {
  return Damaged(std::string("the archive of associated files is damaged (") + what + "); download the file again");
}

// Position of an archive's central directory.
struct Directory {
  uint64_t offset = 0;
  uint64_t size = 0;
  uint64_t end = 0;  // where the records that end the archive begin
};

// Replaces the directory's offset and size by those of Zip64 if the archive has them.
Status ReadZip64(const Source& source, uint64_t end, Directory* directory) {
  if (end < kLocator64Size) return {};
  std::vector<uint8_t> buffer;
  Bytes locator, record;
  SF_ASSIGN_OR_RETURN(locator, source.Read(end - kLocator64Size, kLocator64Size, buffer));
  if (Load<uint32_t>(locator.data) != kLocator64Signature) return {};
  const uint64_t position = end - kLocator64Size;
  if (position < kEnd64Size) return DamagedArchive("its end is cut off");
  SF_ASSIGN_OR_RETURN(record, source.Read(position - kEnd64Size, kEnd64Size, buffer));
  if (Load<uint32_t>(record.data) != kEnd64Signature) return DamagedArchive("its end has no signature");
  *directory = {Load<uint64_t>(record.data + 48), Load<uint64_t>(record.data + 40), position - kEnd64Size};
  return {};
}

// Finds the archive's end, which only a comment may follow. Returns whether there is one.
Result<bool> FindDirectory(const Source& source, Directory* directory) {
  if (source.size() < kEndSize) return false;
  const uint64_t searched = std::min(source.size(), kEndSize + kMaxComment);
  std::vector<uint8_t> buffer;
  Bytes tail;
  SF_ASSIGN_OR_RETURN(tail, source.Read(source.size() - searched, searched, buffer));
  for (uint64_t position = searched - kEndSize + 1; position-- > 0;) {
    const uint8_t* record = tail.data + position;
    if (Load<uint32_t>(record) != kEndSignature) continue;
    if (Load<uint16_t>(record + 20) != searched - position - kEndSize) continue;
    const uint64_t end = source.size() - searched + position;
    *directory = {Load<uint32_t>(record + 16), Load<uint32_t>(record + 12), end};
    SF_RETURN_IF_ERROR(ReadZip64(source, end, directory));
    return true;
  }
  return false;
}

// Reads the 64-bit values of an entry's extra fields, for those of its own that have no room.
bool ReadWideFields(Bytes extra, uint64_t* size, uint64_t* packed, uint64_t* offset) {
  Cursor fields(extra);
  uint16_t kind, length;
  Bytes content;
  while (fields.Fixed(&kind) && fields.Fixed(&length) && fields.Take(length, &content)) {
    if (kind != kZip64Field) continue;
    Cursor values(content);
    return (*size != kIn64 || values.Fixed(size)) && (*packed != kIn64 || values.Fixed(packed)) &&
           (*offset != kIn64 || values.Fixed(offset));
  }
  return true;
}

// Returns where the bytes of a file begin whose local header is at `header`.
Result<uint64_t> ContentOffset(const Source& source, uint64_t header) {
  std::vector<uint8_t> buffer;
  Bytes local;
  SF_ASSIGN_OR_RETURN(local, source.Read(header, kLocalSize, buffer));
  if (Load<uint32_t>(local.data) != kLocalSignature) return DamagedArchive("a file has no header");
  return header + kLocalSize + Load<uint16_t>(local.data + 26) + Load<uint16_t>(local.data + 28);
}

}  // namespace

Result<std::vector<ArchivedFile>> ReadArchive(const Source& source) {
  std::vector<ArchivedFile> files;
  Directory directory;
  bool found;
  SF_ASSIGN_OR_RETURN(found, FindDirectory(source, &directory));
  if (!found) return files;
  if (directory.size > directory.end || directory.offset > directory.end - directory.size) {
    return DamagedArchive("its directory is outside");
  }
  // Offsets count from the start of the archive, which is not that of the source if the archive was appended to a file.
  const uint64_t start = directory.end - directory.size - directory.offset;
  std::vector<uint8_t> buffer;
  Bytes list;
  SF_ASSIGN_OR_RETURN(list, source.Read(start + directory.offset, directory.size, buffer));
  Cursor cursor(list);
  while (cursor.remaining() > 0) {
    Bytes entry, name, extra, comment;
    if (!cursor.Take(kEntrySize, &entry) || Load<uint32_t>(entry.data) != kEntrySignature ||
        !cursor.Take(Load<uint16_t>(entry.data + 28), &name) || !cursor.Take(Load<uint16_t>(entry.data + 30), &extra) ||
        !cursor.Take(Load<uint16_t>(entry.data + 32), &comment)) {
      return DamagedArchive("an entry of its directory is cut off");
    }
    uint64_t packed = Load<uint32_t>(entry.data + 20), size = Load<uint32_t>(entry.data + 24);
    uint64_t header = Load<uint32_t>(entry.data + 42);
    if (!ReadWideFields(extra, &size, &packed, &header)) return DamagedArchive("an entry of its directory is cut off");
    if (Load<uint16_t>(entry.data + 10) != kStored || packed != size) {
      return Unsupported("associated file " + std::string(name.text()) + " is compressed, expected stored; pack the model again");
    }
    ArchivedFile file{std::string(name.text()), 0, size};
    if (header > source.size() - start) return DamagedArchive("a file is outside");
    SF_ASSIGN_OR_RETURN(file.offset, ContentOffset(source, start + header));
    if (file.offset > source.size() || size > source.size() - file.offset) return DamagedArchive("a file is outside");
    files.push_back(std::move(file));
  }
  return files;
}

}  // namespace searchforge
