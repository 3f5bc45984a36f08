package auth

// Leeway is how long a token is still accepted after its exp, because clocks differ.
const Leeway = leeway
