package rpc

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/retry"
)

// Error converts an error for the caller of a service. A *connect.Error is not changed. A refusal keeps its code, text
// and field. The end of a context becomes "deadline_exceeded" or "canceled", and an unavailable dependency
// (retry.ErrUnavailable) becomes "unavailable". Any other error becomes "internal" without its text, which may be
// confidential and is only logged (see Interceptors).
func Error(err error) error {
	if err == nil {
		return nil
	}
	var already *connect.Error
	if errors.As(err, &already) {
		return already
	}
	refused, ok := refusal.Of(err)
	switch {
	case ok:
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the call took too long"))
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, errors.New("the call was cancelled"))
	case errors.Is(err, retry.ErrUnavailable):
		refused = refusal.New(refusal.Unavailable, "a dependency is unavailable, try again")
	default:
		refused = internal()
	}
	e := connect.NewError(statusOf(refused.Code), errors.New(refused.Text))
	e.Meta().Set(headerCode, refused.Code)
	if refused.Field != "" {
		e.Meta().Set(headerField, refused.Field)
	}
	return e
}

func internal() *refusal.Error {
	return refusal.New(refusal.Internal, "something went wrong; it was logged")
}

func statusOf(code string) connect.Code {
	switch code {
	case refusal.Internal, refusal.Failed:
		return connect.CodeInternal
	case refusal.Unavailable, refusal.Queued:
		return connect.CodeUnavailable
	case refusal.NotFound:
		return connect.CodeNotFound
	case refusal.NotAMember:
		return connect.CodePermissionDenied
	case refusal.Unauthorized:
		return connect.CodeUnauthenticated
	case refusal.InvalidField, refusal.Malformed:
		return connect.CodeInvalidArgument
	case refusal.TooManyWaiting, refusal.TooMany:
		return connect.CodeResourceExhausted
	default:
		return connect.CodeFailedPrecondition
	}
}

// Refusal returns the refusal in the error of a call; false if the error does not contain a refusal.
func Refusal(err error) (*refusal.Error, bool) {
	var e *connect.Error
	if !errors.As(err, &e) {
		return refusal.Of(err)
	}
	code := e.Meta().Get(headerCode)
	if code == "" {
		return nil, false
	}
	return &refusal.Error{Code: code, Text: e.Message(), Field: e.Meta().Get(headerField)}, true
}
