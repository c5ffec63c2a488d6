/* A file descriptor over a socket pair, and a forked peer that ends before its parent prints. */
#ifndef HM_TEST_SOCKETS_H
#define HM_TEST_SOCKETS_H
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "driver.h"

static inline void
send_fd(int socket, int fd)
{
    char data = 'x', control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&data, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (sendmsg(socket, &message, 0) != 1)
        hm_die("sendmsg failed");
}

static inline int
receive_fd(int socket)
{
    int fd = -1;
    char data, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&data, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};

    if (recvmsg(socket, &message, 0) != 1 || CMSG_FIRSTHDR(&message) == NULL)
        hm_die("recvmsg failed");
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static inline void
send_bytes(int socket, const void *bytes, size_t size)
{
    if (write(socket, bytes, size) != (ssize_t)size)
        hm_die("write to the peer failed");
}

static inline void
receive_bytes(int socket, void *bytes, size_t size)
{
    if (read(socket, bytes, size) != (ssize_t)size)
        hm_die("the peer went away");
}

static inline void
wait_for(pid_t child)
{
    int status = -1;

    if (waitpid(child, &status, 0) != child || status != 0)
        hm_die("the peer ended with status %d", status);
}

#endif
