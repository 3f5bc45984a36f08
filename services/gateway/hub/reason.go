package hub

import (
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// Reason is the reason for which the gateway ends a connection: one of the close codes in proto/edumatrix/gateway/v1.
type Reason struct {
	Code      int    // the WebSocket close code
	Name      string // such as "token_expired"
	Text      string
	Reconnect bool // the client should connect again
}

// The reasons for which this gateway ends connections.
var (
	// Left is WebSocket's own code for a normal end: the client has closed the connection.
	Left = reason(gatewayv1.CloseCode_CLOSE_CODE_NORMAL)
	// Lost is WebSocket's own code for a connection that has broken. It is never sent, because nothing reaches the
	// client any more.
	Lost = reason(gatewayv1.CloseCode_CLOSE_CODE_ABNORMAL)
	// TooLarge is WebSocket's own code for a message that is too large: larger than frame.MaxMessage.
	TooLarge = reason(gatewayv1.CloseCode_CLOSE_CODE_TOO_LARGE)

	Shutdown           = reason(gatewayv1.CloseCode_CLOSE_CODE_STOPPING)
	Slow               = reason(gatewayv1.CloseCode_CLOSE_CODE_TOO_SLOW)
	NoPong             = reason(gatewayv1.CloseCode_CLOSE_CODE_NO_PONG)
	TokenExpired       = reason(gatewayv1.CloseCode_CLOSE_CODE_TOKEN_EXPIRED)
	Internal           = reason(gatewayv1.CloseCode_CLOSE_CODE_INTERNAL)
	Restored           = reason(gatewayv1.CloseCode_CLOSE_CODE_RESTORED)
	Interrupted        = reason(gatewayv1.CloseCode_CLOSE_CODE_INTERRUPTED)
	Unavailable        = reason(gatewayv1.CloseCode_CLOSE_CODE_UNAVAILABLE)
	TooFast            = reason(gatewayv1.CloseCode_CLOSE_CODE_TOO_FAST)
	TooManyConnections = reason(gatewayv1.CloseCode_CLOSE_CODE_TOO_MANY_CONNECTIONS)
	ConnectTimeout     = reason(gatewayv1.CloseCode_CLOSE_CODE_CONNECT_TIMEOUT)
	GatewayFull        = reason(gatewayv1.CloseCode_CLOSE_CODE_GATEWAY_FULL)

	Unauthorized  = reason(gatewayv1.CloseCode_CLOSE_CODE_UNAUTHORIZED)
	SessionEnded  = reason(gatewayv1.CloseCode_CLOSE_CODE_SESSION_ENDED)
	ProtocolError = reason(gatewayv1.CloseCode_CLOSE_CODE_PROTOCOL_ERROR)
)

// reason returns the Reason that the declaration of a close code describes.
func reason(code gatewayv1.CloseCode) Reason {
	value := code.Descriptor().Values().ByNumber(protoreflect.EnumNumber(code))
	declared := proto.GetExtension(value.Options(), gatewayv1.E_Close).(*gatewayv1.Close)
	return Reason{Code: int(code), Name: strings.ToLower(strings.TrimPrefix(string(value.Name()), "CLOSE_CODE_")),
		Text: declared.Message, Reconnect: declared.Reconnect}
}

// reconnectAfter is the minimum time that a client waits before it reconnects. Clients add a random part; see
// docs/protocol.md.
const reconnectAfter = 500 * time.Millisecond

// retryFullAfter is used instead of reconnectAfter if the gateway has too many connections. It is longer, because the
// gateway can accept further connections only after other clients have left.
const retryFullAfter = 5 * time.Second

// Frame returns the frame that is sent before the close frame. It returns false for Lost, because nothing reaches the
// client, and for Left, because the client has closed the connection itself.
func (r Reason) Frame() (frame.Frame, bool) {
	if r == Left || r == Lost {
		return frame.Frame{}, false
	}
	e := refusal.New(r.Name, "%s", r.Text)
	switch {
	case r == GatewayFull:
		e.RetryAfter = retryFullAfter
	case r.Reconnect:
		e.RetryAfter = reconnectAfter
	}
	return frame.Closing(r.Code, e), true
}
