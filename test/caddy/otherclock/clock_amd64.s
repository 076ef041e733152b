//go:build linux && amd64

#include "textflag.h"

// wrong has the arguments of C: the clock in DI, where the time goes in SI.
TEXT ·wrong(SB),NOSPLIT|NOFRAME,$0-0
	PUSHQ	DI
	PUSHQ	SI
	SUBQ	$8, SP // C wants 16 bytes
	MOVQ	·original(SB), AX
	CALL	AX
	ADDQ	$8, SP
	POPQ	SI
	POPQ	DI
	CMPL	DI, $0 // CLOCK_REALTIME
	JNE	done
	MOVQ	·ahead(SB), CX
	ADDQ	CX, 0(SI) // seconds
done:
	RET

TEXT ·install(SB),NOSPLIT,$0-0
	MOVQ	runtime·vdsoClockgettimeSym(SB), AX
	CMPQ	AX, $0
	JEQ	none // the kernel maps none
	MOVQ	AX, ·original(SB)
	MOVQ	$·wrong(SB), AX
	MOVQ	AX, runtime·vdsoClockgettimeSym(SB)
none:
	RET
