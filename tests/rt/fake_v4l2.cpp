// A camera and a virtual camera out of a plain file, preloaded into a process: the ioctls of V4L2 are
// answered here, everything else (open, mmap, write) is the file's own. Pictures are YUYV; each is
// flat, and brighter than the one before. After FAKE_V4L2_FRAMES pictures it is unplugged, once.
#include <dlfcn.h>
#include <errno.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

namespace {
constexpr unsigned kBuffers = 4;
v4l2_pix_format format;
unsigned char *memory;
unsigned queued[1024], head, tail, count, fps = 25;
bool unplugged;

void describe(v4l2_pix_format &pix) {
  if (!pix.width) pix.width = 64, pix.height = 48;
  pix.pixelformat = V4L2_PIX_FMT_YUYV;
  pix.field = V4L2_FIELD_NONE;
  pix.bytesperline = 2 * pix.width;
  pix.sizeimage = pix.bytesperline * pix.height;
  pix.colorspace = V4L2_COLORSPACE_SMPTE170M;
}

void place(v4l2_buffer *buffer, unsigned index) {
  buffer->index = index;
  buffer->length = format.sizeimage;
  buffer->m.offset = index * 65536;
}

int dequeue(v4l2_buffer *buffer) {
  const char *limit = getenv("FAKE_V4L2_FRAMES");
  if (limit && !unplugged && count >= (unsigned)atoi(limit)) {
    unplugged = true;
    errno = ENODEV;
    return -1;
  }
  usleep(1000000 / fps);
  place(buffer, queued[head++ % 1024]);
  buffer->bytesused = format.sizeimage;
  buffer->flags = V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  buffer->timestamp.tv_sec = now.tv_sec;
  buffer->timestamp.tv_usec = now.tv_nsec / 1000;
  for (unsigned i = 0; i < format.sizeimage; ++i)
    memory[buffer->m.offset + i] = i % 2 ? 128 : 16 + 2 * (count % 100);
  ++count;
  return 0;
}

int answer(int file, unsigned long request, void *given) {
  switch (request) {
  case VIDIOC_QUERYCAP: {
    auto *cap = static_cast<v4l2_capability *>(given);
    memset(cap, 0, sizeof *cap);
    cap->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_VIDEO_OUTPUT | V4L2_CAP_STREAMING;
    return 0;
  }
  case VIDIOC_G_FMT:
    describe(format);
    static_cast<v4l2_format *>(given)->fmt.pix = format;
    return 0;
  case VIDIOC_S_FMT:
    describe(format = static_cast<v4l2_format *>(given)->fmt.pix);
    static_cast<v4l2_format *>(given)->fmt.pix = format;
    return 0;
  case VIDIOC_G_PARM:
  case VIDIOC_S_PARM: {
    auto &capture = static_cast<v4l2_streamparm *>(given)->parm.capture;
    capture.capability = V4L2_CAP_TIMEPERFRAME;
    if (request == VIDIOC_S_PARM) fps = capture.timeperframe.denominator / capture.timeperframe.numerator;
    capture.timeperframe = {1, fps};
    return 0;
  }
  case VIDIOC_REQBUFS:
    static_cast<v4l2_requestbuffers *>(given)->count = kBuffers;
    if (ftruncate(file, kBuffers * 65536)) return -1;
    memory = static_cast<unsigned char *>(
        mmap(nullptr, kBuffers * 65536, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    head = tail = 0;
    return 0;
  case VIDIOC_QUERYBUF:
    place(static_cast<v4l2_buffer *>(given), static_cast<v4l2_buffer *>(given)->index);
    return 0;
  case VIDIOC_QBUF:
    queued[tail++ % 1024] = static_cast<v4l2_buffer *>(given)->index;
    return 0;
  case VIDIOC_DQBUF:
    return dequeue(static_cast<v4l2_buffer *>(given));
  case VIDIOC_G_INPUT:
    *static_cast<int *>(given) = 0;
    return 0;
  case VIDIOC_STREAMON:
  case VIDIOC_STREAMOFF:
    return 0;
  case VIDIOC_ENUMINPUT:
    static_cast<v4l2_input *>(given)->std = 0;
    return 0;
  default:
    errno = ENOTTY;
    return -1;
  }
}
} // namespace

extern "C" int ioctl(int file, unsigned long request, ...) {
  va_list rest;
  va_start(rest, request);
  void *given = va_arg(rest, void *);
  va_end(rest);
  request &= 0xffffffff;
  if (_IOC_TYPE(request) == 'V') return answer(file, request, given);
  using Real = int (*)(int, unsigned long, ...);
  static auto real = reinterpret_cast<Real>(dlsym(RTLD_NEXT, "ioctl"));
  return real(file, request, given);
}
