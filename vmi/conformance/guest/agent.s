; SPDX-License-Identifier: GPL-2.0-only
; The guest of the conformance suite. It is a few routines, none of which knows a requirement: the host
; puts a call or an argument in place, starts one of them and looks at what is left behind.
;
; It runs at its own address, one to one, in a kernel at whatever level it finds itself. The port F4h ends
; a run. PARAMETERS is filled in by the host; LOG is what the handlers saw.

; -- beginning: tables, task register, paging, interrupt controllers; still on the bare machine
boot:   lgdt [{gdtr}]
        lidt [{idtr}]
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov fs, eax
        mov gs, eax
        push 0x08
        push {flat}
        retf
flat:   mov eax, 0x28
        ltr ax
        mov eax, [{CR4}]
        mov cr4, eax
        mov eax, [{CR3}]
        mov cr3, eax
        mov eax, [{CR0}]
        mov cr0, eax
        mov al, 0x11
        out 0x20, al
        mov al, 0x20
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0x11
        out 0xa0, al
        mov al, 0x28
        out 0xa1, al
        mov al, 2
        out 0xa1, al
        mov al, 1
        out 0xa1, al
        mov al, 0xff
        out 0x21, al
        out 0xa1, al
        jmp done
gdtr:   .word 0x7ff
        .long {GDT}
idtr:   .word 0x7ff
        .long {IDT}

; -- one call: the host writes CALL rel32 over the NOPs
site:   nop
        nop
        nop
        nop
        nop
done:   out 0xf4, al
        jmp done

; -- many calls in one run: a record for each at WALK_RECORD, which says what is copied to where first (the
; stack arguments, and what the call needs in memory), ESP, the other registers, and the site; the last one has
; no site. What each call leaves goes to the log, downwards from WALK_LOG: flags, registers, its ESP.
walk:   mov ebx, [{WALK_RECORD}]
        mov eax, [ebx]
        test eax, eax
        jz done
        mov [{WALK_SITE}], eax
        mov eax, [ebx + 4]
        mov [{WALK_ESP}], eax
        mov esi, [ebx + 8]
        mov edi, [ebx + 12]
        mov ecx, [ebx + 16]
        rep movsb
        mov esi, [ebx + 20]
        mov edi, [ebx + 24]
        mov ecx, [ebx + 28]
        rep movsb
        lea esp, [ebx + 32]
        add ebx, {RECORD}
        mov [{WALK_RECORD}], ebx
        popad
        mov esp, [{WALK_ESP}]
        jmp dword ptr [{WALK_SITE}]
walked: mov [{WALK_ESP}], esp
        mov esp, [{WALK_LOG}]
        pushfd
        pushad
        push dword ptr [{WALK_ESP}]
        mov [{WALK_LOG}], esp
        cld
        jmp walk

; -- what a kernel does between calls; each ends the run
load:   mov eax, [ebx]
        jmp done
store:  mov [ebx], eax
        jmp done
fpu:    fnstcw word ptr [{SCRATCH}]
        jmp done
spin:   dec ecx
        jnz spin
        jmp done

null_segments:
        xor eax, eax
        mov fs, eax
        mov gs, eax
        jmp done
load_ds:
        mov ebx, ds
        mov ds, eax
        mov ds, ebx
        jmp done
load_es:
        mov es, eax
        jmp done
load_fs:
        mov fs, eax
        jmp done
load_gs:
        mov gs, eax
        jmp done
load_by_fs:
        mov eax, fs:[0]
        jmp done
int30:  int 0x30
        jmp done
; a handler that takes a page fault before it does what the usual one does
nest:   mov eax, [ebx]
nest_back:
        jmp v48
; a call with null selectors in DS and ES
null_call:
        xor edx, edx
        mov ds, edx
        mov es, edx
null_site:
        nop
        nop
        nop
        nop
        nop
        mov edx, ss
        mov ds, edx
        mov es, edx
        jmp done
iret_site:
        iretd
        nop
        nop
        nop
        nop
; one interrupt of the timer, 1 ms from now
timer_once:
        mov al, 0x30
        out 0x43, al
        mov al, 0xa9
        out 0x40, al
        mov al, 0x04
        out 0x40, al
        mov al, 0xfe
        out 0x21, al
        jmp done
; a handler that ends the run as it was entered
mask:   mov ax, 0x10
        mov ds, eax
        jmp done
open_irq0:
        mov al, 0xfe
        out 0x21, al
        jmp done
open_irq1:
        mov al, 0xfd
        out 0x21, al
        jmp done

; a second processor: writes down what it started with, asks two calls, and waits
second: mov [{SCRATCH + 0x40}], eax
        mov [{SCRATCH + 0x44}], ebx
        mov [{SCRATCH + 0x48}], ecx
        mov [{SCRATCH + 0x4c}], edx
        mov [{SCRATCH + 0x50}], ebp
        mov [{SCRATCH + 0x54}], esi
        mov [{SCRATCH + 0x58}], edi
        mov [{SCRATCH + 0x5c}], esp
second_mask:
        nop
        nop
        nop
        nop
        nop
        mov [{SCRATCH + 0x64}], eax
second_tr:
        nop
        nop
        nop
        nop
        nop
        mov [{SCRATCH + 0x68}], eax
        inc dword ptr [{SCRATCH + 0x60}]
second_waits:
        pause
        jmp second_waits

; -- user code lies at USER, on a page of its own, and ends with INT 31h
leave_user:
        int 0x31
enter_user:
        push 0x23
        push {USER_STACK}
        push dword ptr [{USER_FLAGS}]
        push 0x1b
        push {USER}
iret_slot:
        iretd
        nop
        nop
        nop
        nop

; -- every vector: keep the frame and the registers, and go back, or to where the host said, or end the run
common: pushad
        push ds
        push es
        mov ebp, esp
        mov eax, ss
        mov ds, eax
        mov es, eax
        mov edi, [{LOG_COUNT}]
        cmp edi, 60
        jae full
        shl edi, 6
        add edi, {LOG}
        lea esi, [ebp + 8]
        mov ecx, 60
        cld
        rep movsb
        mov eax, [ebp + 4]
        mov [edi], eax
full:   inc dword ptr [{LOG_COUNT}]
        cmp dword ptr [{ONCE}], 0
        jne done
        mov eax, [{RESUME}]
        test eax, eax
        jz keep
        mov [ebp + 48], eax
        mov dword ptr [{RESUME}], 0
keep:   mov eax, [ebp + 40]
        cmp eax, 0x20
        jb ended
        cmp eax, 0x30
        jae ended
        cmp eax, 0x28
        mov al, 0x20
        jb first
        out 0xa0, al
first:  out 0x20, al
ended:  pop es
        pop ds
        popad
        add esp, 8
        jmp iret_slot
v0:
        push 0
        push 0
        jmp common
v1:
        push 0
        push 1
        jmp common
v2:
        push 0
        push 2
        jmp common
v3:
        push 0
        push 3
        jmp common
v4:
        push 0
        push 4
        jmp common
v5:
        push 0
        push 5
        jmp common
v6:
        push 0
        push 6
        jmp common
v7:
        push 0
        push 7
        jmp common
v8:
        push 8
        jmp common
v9:
        push 0
        push 9
        jmp common
v10:
        push 10
        jmp common
v11:
        push 11
        jmp common
v12:
        push 12
        jmp common
v13:
        push 13
        jmp common
v14:
        push 14
        jmp common
v15:
        push 0
        push 15
        jmp common
v16:
        push 0
        push 16
        jmp common
v17:
        push 17
        jmp common
v18:
        push 0
        push 18
        jmp common
v19:
        push 0
        push 19
        jmp common
v20:
        push 0
        push 20
        jmp common
v21:
        push 0
        push 21
        jmp common
v22:
        push 0
        push 22
        jmp common
v23:
        push 0
        push 23
        jmp common
v24:
        push 0
        push 24
        jmp common
v25:
        push 0
        push 25
        jmp common
v26:
        push 0
        push 26
        jmp common
v27:
        push 0
        push 27
        jmp common
v28:
        push 0
        push 28
        jmp common
v29:
        push 0
        push 29
        jmp common
v30:
        push 0
        push 30
        jmp common
v31:
        push 0
        push 31
        jmp common
v32:
        push 0
        push 32
        jmp common
v33:
        push 0
        push 33
        jmp common
v34:
        push 0
        push 34
        jmp common
v35:
        push 0
        push 35
        jmp common
v36:
        push 0
        push 36
        jmp common
v37:
        push 0
        push 37
        jmp common
v38:
        push 0
        push 38
        jmp common
v39:
        push 0
        push 39
        jmp common
v40:
        push 0
        push 40
        jmp common
v41:
        push 0
        push 41
        jmp common
v42:
        push 0
        push 42
        jmp common
v43:
        push 0
        push 43
        jmp common
v44:
        push 0
        push 44
        jmp common
v45:
        push 0
        push 45
        jmp common
v46:
        push 0
        push 46
        jmp common
v47:
        push 0
        push 47
        jmp common
v48:
        push 0
        push 48
        jmp common
