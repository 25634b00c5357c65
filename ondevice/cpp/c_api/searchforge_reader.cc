// The C interface over the C++ classes.
#include "searchforge_reader.h"

#include <cstring>
#include <memory>
#include <utility>

#include "c_api/c_error.h"
#include "c_api/c_handles.h"
#include "model/source.h"

namespace {

using searchforge::Bytes;
using searchforge::Guarded;
using searchforge::Index;
using searchforge::IndexShape;
using searchforge::Result;
using searchforge::Source;
using searchforge::Status;

Status Open(std::unique_ptr<Source> source, sf_index** index) {
  auto opened = std::make_unique<sf_index>();
  SF_ASSIGN_OR_RETURN(opened->index, Index::Open(std::move(source)));
  *index = opened.release();
  return {};
}

Status Open(Result<std::unique_ptr<Source>> source, sf_index** index) {
  if (!source.ok()) return source.status();
  return Open(std::move(source.value()), index);
}

}  // namespace

sf_status sf_open_path(const char* path, sf_index** index) {
  return Guarded([=] { return Open(searchforge::FromPath(path), index); });
}

sf_status sf_open_descriptor(int descriptor, uint64_t offset, uint64_t length, sf_index** index) {
  return Guarded([=] { return Open(searchforge::FromDescriptor(descriptor, offset, length), index); });
}

sf_status sf_open_memory(const void* data, size_t size, sf_index** index) {
  return Guarded([=] { return Open(searchforge::FromMemory(Bytes{static_cast<const uint8_t*>(data), size}), index); });
}

sf_status sf_open_callback(sf_read_function read, void* context, uint64_t size, sf_index** index) {
  return Guarded([=] {
    auto call = [=](uint64_t offset, size_t length, uint8_t* target) { return read(context, offset, length, target) == 0; };
    return Open(searchforge::FromFunction(call, size), index);
  });
}

void sf_close(sf_index* index) { delete index; }

sf_shape sf_get_shape(const sf_index* index) {
  const IndexShape& shape = index->index->shape();
  return {shape.items,      shape.dim, shape.partitions, shape.partitions_searched,
          shape.code_bytes, static_cast<uint32_t>(shape.lookup_type)};
}

const char* sf_user_info(const sf_index* index, size_t* length) {
  *length = index->index->user_info().size();
  return index->index->user_info().data();
}

sf_status sf_search(const sf_index* index, const float* query, size_t dim, size_t k, uint32_t partitions, sf_hit* hits,
                    size_t* found) {
  return Guarded([=] { return index->index->Search(query, dim, k, partitions, hits, found); });
}

sf_status sf_metadata(const sf_index* index, uint32_t item, void* target, size_t capacity, size_t* length) {
  return Guarded([=] { return index->index->Metadata(item, static_cast<uint8_t*>(target), capacity, length); });
}

sf_status sf_verify(const sf_index* index) {
  return Guarded([=] { return index->index->Verify(); });
}

size_t sf_file_count(const sf_index* index) { return index->index->files().size(); }

const char* sf_file_name(const sf_index* index, size_t number, uint64_t* size) {
  const auto& files = index->index->files();
  if (number >= files.size()) return nullptr;
  *size = files[number].size;
  return files[number].name.c_str();
}

sf_status sf_read_file(const sf_index* index, size_t number, uint64_t offset, size_t length, void* target) {
  return Guarded([=]() -> Status {
    const auto& files = index->index->files();
    if (number >= files.size() || offset > files[number].size || length > files[number].size - offset) {
      return searchforge::InvalidArgument("this file has no such bytes; ask for a range that sf_file_name states");
    }
    std::vector<uint8_t> buffer;
    Bytes bytes;
    SF_ASSIGN_OR_RETURN(bytes, index->index->source().Read(files[number].offset + offset, length, buffer));
    if (length > 0) std::memcpy(target, bytes.data, length);
    return {};
  });
}
