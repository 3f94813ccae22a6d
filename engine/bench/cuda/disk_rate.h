// How fast a disk gives a file by itself: past the system's memory of it, by several threads, as much as a drive wants at once.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace millrace::bench {

// Of a folder, its largest file.
inline std::filesystem::path largest_file(const std::string& path) {
  std::filesystem::path largest = path;
  std::uintmax_t bytes = 0;
  if (!std::filesystem::is_directory(path)) return largest;
  for (const auto& entry : std::filesystem::directory_iterator(path))
    if (entry.is_regular_file() && entry.file_size() > bytes) bytes = entry.file_size(), largest = entry.path();
  return largest;
}

// Prints the rate at which the file's first 4 GiB are read with O_DIRECT.
inline void tell_disk_rate(const std::string& path) {
  constexpr size_t alignment = 4096, part_bytes = size_t{8} << 20, bytes_max = size_t{4} << 30;
  constexpr int threads_count = 8;
  const std::filesystem::path file = largest_file(path);
  const int descriptor = open(file.c_str(), O_RDONLY | O_DIRECT);
  if (descriptor < 0) return void(std::printf("start: the disk's own rate is not known: %s cannot be read past the system's memory\n", file.c_str()));
  const size_t parts = std::min<size_t>(std::filesystem::file_size(file), bytes_max) / part_bytes;
  std::atomic<size_t> next{0}, bytes_read{0};
  const auto begun = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (int i = 0; i < threads_count; i++)
    threads.emplace_back([&] {
      const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(alignment, part_bytes), &std::free);
      for (size_t part; memory != nullptr && (part = next++) < parts;)
        if (const ssize_t count = pread(descriptor, memory.get(), part_bytes, static_cast<off_t>(part * part_bytes)); count > 0) bytes_read += static_cast<size_t>(count);
    });
  for (std::thread& thread : threads) thread.join();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  close(descriptor);
  std::printf("start: the disk itself: %.2f GB/s, %.2f GiB of %s by %d threads past the system's memory\n", static_cast<double>(bytes_read) / seconds * 1e-9,
              static_cast<double>(bytes_read) / (1 << 30), file.filename().c_str(), threads_count);
}

}  // namespace millrace::bench
