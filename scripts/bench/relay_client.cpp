// The load client of `npm run bench -- relay`: one thread that holds thousands of WebSockets, so that the servers are what is measured.
//
//     relay_client < PLAN        the lines of relay/plan.h, then, while it runs: `measure`, `report`, `stop_reading`, `read_on`, `quit`
//
// It opens all sockets, then sends the plan's STARTs evenly, each when it is due whatever became of the others. A token's text is a space and
// the time at which it was due, in microseconds of CLOCK_MONOTONIC in base 36: Linux has one such clock for all processes. On standard
// output it says, a line of JSON each, that all sockets are open, that all streams are answered, and what `report` asks for.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>

#include "relay/frames.h"
#include "relay/plan.h"
#include "relay/streams.h"

namespace relay {
namespace {

constexpr size_t opening_max = 64;  // sockets on their way at once, so that no listener's queue overflows
constexpr int events_max = 1'024;
constexpr size_t read_bytes_max = 65'536;
constexpr size_t head_bytes_max = 16'384;
constexpr size_t other_files = 16;
constexpr int small_buffer_bytes = 4'096;
constexpr int small_segment_bytes = 536;  // the server's own buffer grows with its segments
constexpr int64_t idle_ms = 1'000;  // longest wait where nothing is due
constexpr uint64_t stdin_tag = UINT64_MAX;

int64_t now_us() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<int64_t>(time.tv_sec) * 1'000'000 + time.tv_nsec / 1'000;
}

struct Socket {
  int fd = -1;
  enum { upgrading, greeting, open, closed } phase = upgrading;
  std::string in;   // of a frame that is not whole yet
  std::string out;  // what the kernel did not take yet
};

class Load {
 public:
  Load(const Plan& plan, Lines& commands) : plan_(plan), commands_(commands), sockets_(plan.heads.size()), streams_(plan) {}

  void run();

 private:
  void open_more();
  void connect_to_server(size_t index);
  void send_due();
  int wait_ms() const;
  void tell_answered();
  bool obey();
  void read_all(bool reads);
  void receive(size_t index);
  size_t upgrade(size_t index, std::string_view in);
  void hear(size_t index, const Frame& frame, int64_t now);
  void greeted(size_t index);
  void send(size_t index, std::string_view bytes);
  void flush(size_t index);
  void watch(size_t index, int operation, uint32_t events);
  void lose(size_t index, const std::string& why);

  const Plan& plan_;
  Lines& commands_;
  const int epoll_ = epoll_create1(0);
  std::vector<Socket> sockets_;
  Streams streams_;
  size_t next_socket_ = 0;
  size_t opening_ = 0;
  size_t next_start_ = 0;
  int64_t first_start_us_ = 0;  // 0 until all sockets are open
  bool is_answered_told_ = false;
};

void Load::run() {
  epoll_event event{EPOLLIN, {}};
  event.data.u64 = stdin_tag;
  epoll_ctl(epoll_, EPOLL_CTL_ADD, STDIN_FILENO, &event);
  std::vector<epoll_event> events(events_max);
  while (true) {
    open_more();
    send_due();
    tell_answered();
    const int count = epoll_wait(epoll_, events.data(), events_max, wait_ms());
    for (int at = 0; at < count; at++) {
      const uint64_t tag = events[at].data.u64;
      if (tag == stdin_tag) {
        if (!obey()) return;
        continue;
      }
      if (events[at].events & EPOLLOUT) flush(tag);
      if (events[at].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) receive(tag);
    }
  }
}

// Opens sockets while few are on their way. Once all are open, or lost, the first START is due.
void Load::open_more() {
  if (first_start_us_ != 0) return;
  while (next_socket_ < sockets_.size() && opening_ < opening_max) connect_to_server(next_socket_++);
  if (next_socket_ < sockets_.size() || opening_ > 0) return;
  first_start_us_ = now_us();
  std::printf("{\"event\":\"open\",\"open\":%" PRIu64 ",\"lost\":%" PRIu64 "}\n", streams_.tally().open, streams_.tally().lost);
  std::fflush(stdout);
}

void Load::connect_to_server(size_t index) {
  Socket& socket = sockets_[index];
  opening_++;
  socket.fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (socket.fd < 0) return lose(index, "socket: errno " + std::to_string(errno));
  // Reset at the end, so that no port lingers and the next run finds all of them.
  const linger reset{1, 0};
  setsockopt(socket.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  const int yes = 1;
  setsockopt(socket.fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  if (plan_.has_small_buffers) {
    setsockopt(socket.fd, SOL_SOCKET, SO_RCVBUF, &small_buffer_bytes, sizeof small_buffer_bytes);
    setsockopt(socket.fd, IPPROTO_TCP, TCP_MAXSEG, &small_segment_bytes, sizeof small_segment_bytes);
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(plan_.port));
  inet_pton(AF_INET, plan_.host.c_str(), &address.sin_addr);
  if (connect(socket.fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 && errno != EINPROGRESS)
    return lose(index, "connect: errno " + std::to_string(errno));
  socket.out = "GET " + plan_.path + " HTTP/1.1\r\nHost: " + plan_.host + ':' + std::to_string(plan_.port) +
               "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
               "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" +
               plan_.heads[index] + "\r\n";
  watch(index, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

void Load::send_due() {
  if (first_start_us_ == 0) return;
  for (const int64_t now = now_us(); next_start_ < streams_.count(); next_start_++) {
    const int64_t due_us = first_start_us_ + static_cast<int64_t>(next_start_) * plan_.gap_us;
    if (due_us > now) return;
    const size_t index = next_start_ % sockets_.size(), start = next_start_ / sockets_.size();
    if (sockets_[index].phase == Socket::closed) continue;
    streams_.at(index, start).due_us = due_us;
    send(index, write_frame(plan_.speech == Speech::millrace ? opcode_binary : opcode_text, plan_.starts[start]));
  }
}

int Load::wait_ms() const {
  if (first_start_us_ == 0 || next_start_ >= streams_.count()) return idle_ms;
  const int64_t left_us = first_start_us_ + static_cast<int64_t>(next_start_) * plan_.gap_us - now_us();
  return static_cast<int>(std::clamp<int64_t>((left_us + 999) / 1'000, 0, idle_ms));
}

void Load::tell_answered() {
  if (is_answered_told_ || streams_.unanswered() > 0) return;
  is_answered_told_ = true;
  std::printf("{\"event\":\"answered\"}\n");
  std::fflush(stdout);
}

// False once it is to end, which the end of standard input also asks for.
bool Load::obey() {
  if (!commands_.fill()) return false;
  while (const std::optional<std::string> command = commands_.next()) {
    if (*command == "quit") return false;
    if (*command == "measure") streams_.measure(now_us());
    if (*command == "report") streams_.report(now_us());
    if (*command == "stop_reading") read_all(false);
    if (*command == "read_on") read_all(true);
  }
  return true;
}

// Of sockets that have nothing to send: whoever stops has sent its STARTs.
void Load::read_all(bool reads) {
  constexpr uint32_t none = 0;
  for (size_t index = 0; index < sockets_.size(); index++)
    if (sockets_[index].phase == Socket::open) watch(index, EPOLL_CTL_MOD, reads ? EPOLLIN : none);
}

void Load::receive(size_t index) {
  static char bytes[read_bytes_max];
  Socket& socket = sockets_[index];
  if (socket.phase == Socket::closed) return;
  const ssize_t count = ::read(socket.fd, bytes, sizeof bytes);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count <= 0) return lose(index, count == 0 ? "ended" : "read: errno " + std::to_string(errno));
  // What waits in this process counts too: the time is that of the reading, not of the event.
  const int64_t now = now_us();
  std::string joined;
  std::string_view in(bytes, static_cast<size_t>(count));
  if (!socket.in.empty()) {
    joined.swap(socket.in);
    in = joined.append(in);
  }
  if (socket.phase == Socket::upgrading) in.remove_prefix(upgrade(index, in));
  while (socket.phase == Socket::greeting || socket.phase == Socket::open) {
    const Frame frame = read_frame(in);
    if (frame.state == Frame::incomplete) break;
    if (frame.state == Frame::broken) return lose(index, "a frame that no server may send");
    hear(index, frame, now);
    in.remove_prefix(frame.bytes);
  }
  if (socket.phase != Socket::closed) socket.in = in;
}

// Takes the answer to the upgrade once it is whole. Gives how many bytes it had.
size_t Load::upgrade(size_t index, std::string_view in) {
  const size_t end = in.find("\r\n\r\n");
  if (end == std::string_view::npos) {
    if (in.size() > head_bytes_max) lose(index, "an HTTP head without an end");
    return 0;
  }
  const std::string_view status = in.substr(0, in.find("\r\n"));
  if (status.substr(0, 12) != "HTTP/1.1 101") {
    lose(index, std::string(status.substr(0, 40)));
    return 0;
  }
  sockets_[index].phase = Socket::greeting;
  // A server of plain JSON says nothing of itself.
  if (plan_.speech == Speech::json) greeted(index);
  return end + 4;
}

void Load::hear(size_t index, const Frame& frame, int64_t now) {
  if (frame.opcode == opcode_ping) return send(index, write_frame(opcode_pong, frame.payload));
  if (frame.opcode == opcode_close) return lose(index, "closed with " + std::to_string(big_endian(frame.payload.substr(0, 2))));
  const Reaction reaction = streams_.hear(index, frame, now);
  if (!reaction.broken.empty()) return lose(index, reaction.broken);
  if (reaction.is_greeted) greeted(index);
  if (!reaction.reply.empty()) send(index, write_frame(frame.opcode, reaction.reply));
}

void Load::greeted(size_t index) {
  Socket& socket = sockets_[index];
  if (socket.phase != Socket::greeting) return;
  socket.phase = Socket::open;
  opening_--;
  streams_.tally().open++;
}

void Load::send(size_t index, std::string_view bytes) {
  Socket& socket = sockets_[index];
  if (socket.phase == Socket::closed) return;
  const bool waits = !socket.out.empty();
  socket.out += bytes;
  if (!waits) flush(index);
}

// Hands the kernel what it takes, and asks to hear of it once it takes more.
void Load::flush(size_t index) {
  Socket& socket = sockets_[index];
  if (socket.phase == Socket::closed) return;
  const ssize_t count = ::send(socket.fd, socket.out.data(), socket.out.size(), MSG_NOSIGNAL);
  if (count < 0 && errno != EAGAIN && errno != EINTR) return lose(index, "send: errno " + std::to_string(errno));
  if (count > 0) socket.out.erase(0, static_cast<size_t>(count));
  watch(index, EPOLL_CTL_MOD, socket.out.empty() ? EPOLLIN : EPOLLIN | EPOLLOUT);
}

void Load::watch(size_t index, int operation, uint32_t events) {
  epoll_event event{events, {}};
  event.data.u64 = index;
  epoll_ctl(epoll_, operation, sockets_[index].fd, &event);
}

void Load::lose(size_t index, const std::string& why) {
  Socket& socket = sockets_[index];
  if (socket.phase == Socket::closed) return;
  if (socket.phase == Socket::open) streams_.tally().open--;
  else opening_--;
  socket.phase = Socket::closed;
  if (socket.fd >= 0) ::close(socket.fd);
  streams_.tally().lost++;
  streams_.tally().losses[why]++;
  streams_.lost(index);
}

// False where this user may not open so many files.
bool raise_file_limit(size_t files) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur >= files;
}

}  // namespace
}  // namespace relay

int main() {
  relay::Lines lines(STDIN_FILENO);
  std::string wrong;
  const std::optional<relay::Plan> plan = relay::read_plan(lines, wrong);
  if (!plan || plan->heads.empty() || plan->starts.empty()) {
    std::fprintf(stderr, "relay_client: %s\n", plan ? "the plan has no socket, or no start" : ("no line of a plan: " + wrong).c_str());
    return 1;
  }
  const size_t files = plan->heads.size() + relay::other_files;
  if (!relay::raise_file_limit(files)) {
    std::fprintf(stderr, "relay_client: it opens %zu files, more than this user may have: raise that with ulimit -n\n", files);
    return 1;
  }
  relay::Load(*plan, lines).run();
  return 0;
}
