/*
 * dlsym and dlvsym, exported. What is not ours leaves by a tail jump with the caller's return address in place: the
 * real dlsym finds RTLD_NEXT by it, and other preloaded libraries depend on that.
 */
#if defined(__x86_64__)

        .text
        .macro  route name, answer, real
        .globl  \name
        .type   \name, @function
        .p2align 4
\name:
        .cfi_startproc
        endbr64
        push    %rdi
        .cfi_adjust_cfa_offset 8
        push    %rsi
        .cfi_adjust_cfa_offset 8
        push    %rdx
        .cfi_adjust_cfa_offset 8
        mov     24(%rsp), %rcx          /* the return address: who asks */
        call    \answer
        mov     %rdx, %r11
        pop     %rdx
        .cfi_adjust_cfa_offset -8
        pop     %rsi
        .cfi_adjust_cfa_offset -8
        pop     %rdi
        .cfi_adjust_cfa_offset -8
        test    %r11, %r11
        jnz     1f
        jmp     *\real(%rip)
1:      ret
        .cfi_endproc
        .size   \name, .-\name
        .endm

#elif defined(__aarch64__)

        .text
        .macro  route name, answer, real
        .globl  \name
        .type   \name, %function
        .p2align 4
\name:
        .cfi_startproc
        hint    #34                     /* bti c */
        stp     x29, x30, [sp, #-48]!
        .cfi_def_cfa_offset 48
        .cfi_offset 29, -48
        .cfi_offset 30, -40
        mov     x29, sp
        stp     x0, x1, [sp, #16]
        str     x2, [sp, #32]
        mov     x3, x30                 /* who asks */
        bl      \answer
        cbnz    x1, 1f
        ldp     x0, x1, [sp, #16]
        ldr     x2, [sp, #32]
        ldp     x29, x30, [sp], #48
        adrp    x16, \real
        ldr     x16, [x16, :lo12:\real]
        br      x16
1:      ldp     x29, x30, [sp], #48
        ret
        .cfi_endproc
        .size   \name, .-\name
        .endm

#else
#error "hamirt runs on x86-64 and aarch64"
#endif

        route   dlsym, hm_dlsym_answer, hm_libc_dlsym
        route   dlvsym, hm_dlvsym_answer, hm_libc_dlvsym

        .section .note.GNU-stack, "", %progbits
