// A module of the user's whose types are called as some of BatchNorm's are.

public enum Shape { case circle, square }
public enum Layout { case rows, columns }
public enum Activation { case click, touch }
public enum Statistics { case mean, median }
public struct Tensor { public init() {} }
