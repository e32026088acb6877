// The statuses of the C interface, by which C and Python know errors: the numbers are batchnorm.h's, pinned.

package enum Status: Int32, CaseIterable {
    case nullPointer = 100
    case structSize = 101
    case invalidOption = 102
    case exclusive = 103
    case rank = 200
    case negativeSize = 201
    case noChannels = 202
    case sizeOverflow = 203
    case countMismatch = 204
    case length = 205
    case misaligned = 300
    case overlap = 301
    case outOfMemory = 302
    case epsilon = 400
    case momentum = 401
    case oneValue = 402
    case nonfinite = 403
    case batchCounter = 404
    case negativeSlope = 405
    case moments = 406
    case number = 410
    case noRunningStatistics = 500
    case noParameter = 501
    case noForward = 502
    case layerMismatch = 503
    case stateTruncated = 600
    case stateForeign = 601
    case stateVersion = 602
    case stateChecksum = 603
    case stateInvalid = 604
    case bufferTooSmall = 605
    case noSharedRuntime = 700
}
