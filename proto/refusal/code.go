package refusal

// Codes that belong to no domain. The codes of a domain are declared beside its commands, by the option
// edumatrix.routing.v1.refusals, and package catalog lists them.
const (
	IDReused       = "id_reused"
	Expired        = "expired"
	Failed         = "failed"
	Queued         = "queued"
	Unavailable    = "unavailable"
	Malformed      = "malformed"
	UnknownType    = "unknown_type"
	InvalidField   = "invalid_field"
	Unauthorized   = "unauthorized"
	TooManyWaiting = "too_many_waiting"
	TooMany        = "too_many"
	NotAMember     = "not_a_member"
	NotAllowed     = "not_allowed"
	NotFound       = "not_found"
	Internal       = "internal"
	TooLarge       = "too_large"
)

// Code describes a code that belongs to no domain.
type Code struct {
	Name string
	// Status is the HTTP status for the code.
	Status int
	// Meaning is for developers of clients: what the code means, and what to do.
	Meaning string
}

// DomainStatus is the HTTP status of every code of a domain: the request was understood, but the domain refuses it.
const DomainStatus = 422

var codes = []Code{
	{Malformed, 400, "The frame or the body cannot be read, or does not belong where it was sent. Correct the client."},
	{InvalidField, 400, "The field that `field` names is unknown, of the wrong type or out of its bounds; the message says " +
		"what is allowed."},
	{UnknownType, 404, "There is no command, query or signal of this name for clients; the message has the nearest name."},
	{Unauthorized, 401, "The token is missing or not valid: get a new one. A page of an origin that may not connect gets " +
		"the HTTP status 403."},
	{NotAMember, 403, "The user is not a member of the room that the frame names."},
	{NotAllowed, 403, "The action is reserved for another user, such as the author of a message; the error text names that user."},
	{NotFound, 404, "The object that the frame names does not exist."},
	{IDReused, 409, "The command id is already used for another command. A new command needs a new id."},
	{Expired, 410, "The command expired before it was decided."},
	{TooManyWaiting, 429, "This user or connection has too much in flight: wait for answers before sending more."},
	{TooMany, 429, "The user, or another one whom the command names, has reached a limit for one user; the " +
		"message names the limit."},
	{TooLarge, 413, "The body of a request is larger than 256 KiB. The code is used over HTTP alone: a connection is closed " +
		"with 1009."},
	{Unavailable, 503, "The request had no effect, or it is unknown whether it had one. Send it again, a command with the " +
		"same command id."},
	{Failed, 500, "The command could not be decided, and that is final. It is kept as a dead letter."},
	{Internal, 500, "The server has failed; its log has the details."},
	{Queued, 202, "The command was received but is not decided yet. The kind of the outcome is `queued`, and no error has " +
		"this code."},
}

// Codes returns the codes that belong to no domain. Mistakes of the client come first.
func Codes() []Code { return append([]Code(nil), codes...) }

// Status returns the HTTP status of a code. For a code that Codes does not contain, it is DomainStatus.
func Status(code string) int {
	for i := range codes {
		if codes[i].Name == code {
			return codes[i].Status
		}
	}
	return DomainStatus
}
